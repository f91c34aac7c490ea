"""One sitting at a run: from a config, or from a run directory, to the best member.

    start or resume -> population, strategy, executor, listeners -> controller.run -> final choice -> best.json
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from pbtrl import build, evaluation, progress, runs
from pbtrl.config import Config, load
from pbtrl.controller import Controller
from pbtrl.header import Header, split
from pbtrl.journal import Journal, Line, read
from pbtrl.lock import Lock
from pbtrl.population import Population
from pbtrl.snapshots import Store, write_atomically
from pbtrl.standings import Standings
from pbtrl.tensorboard import TensorBoard

EXIT = {signal.SIGINT: 130, signal.SIGTERM: 143}


def start(
    config: Config, verbatim: str, *, root: Path, name: str | None, if_exists: runs.IfExists, mode: progress.Mode,
    command: Sequence[str],
) -> int:  # fmt: skip
    """Train a new run; returns the exit code."""
    run = runs.create(root, name or config.name or runs.default_name(config.label), if_exists)
    if (run / "journal.jsonl").exists():
        return resume(run, mode=mode, command=command)
    with Lock(run):
        runs.begin(run, command)
        write_atomically(run / "config.yaml", verbatim)
        write_atomically(run / "config.resolved.yaml", config.dump_yaml())
        header = build.header(config, run.name)
        journal = Journal(run / "journal.jsonl")
        journal.append(header.to_line())
        return _sit(config, run, header, header.population(), journal, mode=mode)


def resume(run: Path, *, mode: progress.Mode, command: Sequence[str], overrides: Sequence[str] = ()) -> int:
    """Go on with a run from its last snapshots; `overrides` may extend budgets."""
    with Lock(run):
        config = load(run / "config.resolved.yaml", overrides)
        journal = Journal(run / "journal.jsonl")
        header, lines = split(read(run / "journal.jsonl"))
        for change in runs.begin(run, command):
            print(f"note: {change} since the last sitting", file=sys.stderr)
        if overrides:
            write_atomically(run / "config.resolved.yaml", config.dump_yaml())
        header = build.header(config, header.name)
        earlier = max((line["timing"]["elapsed"] for line in lines if "timing" in line), default=0.0)
        population = header.population().replay(lines)
        journal.append({"kind": "resume", "horizon": header.horizon, "changes": list(overrides)})
        return _sit(config, run, header, population, journal, mode=mode, earlier=earlier)


def _sit(
    config: Config, run: Path, header: Header, population: Population, journal: Journal, *, mode: progress.Mode,
    earlier: float = 0.0,
) -> int:  # fmt: skip
    members = run / "members"
    executor = build.executor(config, run, list(population.members))
    workers = f"{header.size} members on {build.workers(config)} workers"
    standings = Standings(header, population, members, wall_clock=config.budget.wall_clock, earlier=earlier)
    view = progress.view(mode, standings, workers=workers)
    board = TensorBoard(run, header, population, resume=earlier > 0)
    if mode not in ("json", "none"):
        print(_opening(config, run, header, workers), flush=True)
    try:
        with _signals() as caught:
            controller = Controller(
                population=population,
                strategy=build.strategy(config),
                executor=executor,
                journal=journal,
                limits=build.limits(config),
                listeners=[Retention(Store(members), population, config), board, view],
                earlier=earlier,
                interrupted=lambda: bool(caught),
            )
            reason = controller.run()
            view.close()
            executor.close()
            if reason == "interrupted":
                _finish(journal, run, "stop", reason, controller.seconds)
                print(f"stopped; go on with: pbtrl resume {run.name}", file=sys.stderr)
                return EXIT[caught[0]]
            _finish(journal, run, "finish", reason, controller.seconds)
            board.describe()
            best = evaluation.choose(config, run, population)
        if not best:
            print("no member reported: see members/*/log.txt", file=sys.stderr)
            return 3
        if mode not in ("json", "none"):
            print(progress.summary(best, run))
        return 0
    finally:
        view.close()
        executor.close()
        board.close()
        journal.close()


def _finish(journal: Journal, run: Path, kind: str, reason: str, elapsed: float) -> None:
    journal.append({"kind": kind, "reason": reason, "timing": {"elapsed": elapsed}})
    runs.end(run, "finished" if kind == "finish" else "stopped", reason)


def _opening(config: Config, run: Path, header: Header, workers: str) -> str:
    if config.env is None or config.agent is None:
        name = config.trainable.name if config.trainable else ""
        return progress.opening(run, header, trains=name, agent="-", workers=workers)
    return progress.opening(
        run,
        header,
        trains=build.describe_env(config),
        agent=build.describe_agent(config),
        workers=f"{workers}, {config.env.num_envs} envs each",
        wall_clock=config.budget.wall_clock,
    )


@contextmanager
def _signals() -> Iterator[list[signal.Signals]]:
    """The first SIGINT or SIGTERM asks to save and stop; the second ends the process at once."""
    caught: list[signal.Signals] = []

    def handler(number: int, _: FrameType | None) -> None:
        if caught:
            os._exit(EXIT[signal.Signals(number)])
        caught.append(signal.Signals(number))

    before = {s: signal.signal(s, handler) for s in EXIT}
    try:
        yield caught
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@dataclass
class Retention:
    """Deletes the snapshots that nobody will need: older than the newest few, no milestone, nobody's parent."""

    store: Store
    population: Population
    config: Config
    _milestones: set[str] = field(default_factory=set)

    def event(self, line: Line) -> None:
        """After a report, look at that member's snapshots."""
        if line["kind"] != "report":
            return
        rules, member = self.config.snapshots, line["member"]
        length = rules.milestones_every
        history = self.population.members[member].history
        before = history[-2][0] if len(history) > 1 else 0
        if length and before // length < line["step"] // length:
            self._milestones.add(line["assignment"])
        names = self.store.names(member)
        keep = {*names[-rules.keep_last :], *self.population.needed(), *self._milestones}
        for name in names:
            if name not in keep:
                self.store.remove(name)

    def tick(self) -> None:
        """Nothing to do."""
