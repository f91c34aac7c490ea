"""Keep the results of sweeps in benchmarks/results.jsonl, one line per finished run, and write docs/results.md from it.

    pbtrl sweep hopper --seeds 3 --runs evidence
    python benchmarks/results.py evidence/hopper-sweep     # keeps what is finished; again later for the rest
    python benchmarks/results.py                           # only writes the page

Run directories stay on the machine that trained them, and these lines go with the code: further seeds may come from
another machine and a later commit, which each line says. A run that is trained again replaces its line.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pbtrl
from pbtrl.core.scores import EPISODES
from pbtrl.reporting.comparison import statistics
from pbtrl.reporting.comparison.runs import load as compared_run
from pbtrl.reporting.formatting import format_commit, format_count, format_duration, format_fitness
from pbtrl.storage.json_files import read_json_list
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.training.sweep import plan

RESULTS = Path(__file__).with_name("results.jsonl")
PAGE = Path(__file__).parents[1] / "docs/results.md"
HEADER = (
    "arm", "seed", "score", "most likely actions", "median member", "trained", "time", "machine", "commit", "config"
)  # fmt: skip
OPENING = """# Results

Finished runs of sweeps, as `benchmarks/results.py` read them from the run directories. `benchmarks/evidence.sh` has the
command of each sweep; [benchmarks.md](benchmarks.md) has what they mean, older results, and speeds.

- *Score*: mean of fresh episodes of the chosen member, or its metric on data that nothing was chosen with, and a 95 %
  interval over episodes. The interquartile means have a 95 % bootstrap interval over runs.
- *Most likely actions*: the same of 30 episodes without sampled actions.
- *Median member*: median of the population's fitness at the end.
- *Config*: hash of all settings but the seed, and those that make no difference to a result.

Published scores are those of the tables of [CleanRL](https://docs.cleanrl.dev/rl-algorithms/ppo/),
[Tianshou](https://github.com/thu-ml/tianshou/tree/master/examples/mujoco) (maximum of an averaged curve) and the
[SB3 zoo](https://github.com/DLR-RM/rl-baselines3-zoo/blob/master/benchmark.md) (one run). Env versions may differ.
"""
MUJOCO = "published, PPO of one agent after 1M steps: CleanRL (v4) {}, Tianshou (v3) {}, SB3 zoo (v3, tuned) {}"
ATARI = "published, PPO of one agent after 10M steps: CleanRL {}, SB3 zoo {}"
PUBLISHED = {
    "million-halfcheetah": MUJOCO.format(1443, 5784, 5819),
    "million-hopper": MUJOCO.format(2383, 2609, 2410),
    "million-walker2d": MUJOCO.format(2288, 3589, 3479),
    "million-ant": MUJOCO.format("none", 3258, 1327),
    "million-humanoid": MUJOCO.format(716, 787, "none"),
    "pong": ATARI.format(20.4, 21.0),
    "breakout": ATARI.format(415, 398),
}
Interval = list[float] | None  # as JSON has it


@dataclass(frozen=True)
class Result:
    """Result of a finished run.

    Attributes:
        sweep: name of its sweep.
        arm: name of its arm, without the ending of a config file.
        seed: seed of the run.
        score: mean on fresh seeds.
        score_interval: 95 % interval over episodes; None if there is none.
        most_likely: mean over episodes of the most likely actions; None if that says nothing else.
        most_likely_interval: its 95 % interval.
        median: median fitness of the population at the end; None if there is none.
        members: members, evaluators included.
        steps: steps of all of them.
        unit: what `steps` counts.
        seconds: training time, without the time between sessions.
        machine: processor.
        commit: commit of the code, seven digits, with `-dirty` if files differed from it.
        config: hash of all settings but those in which replications may differ, eight digits.
    """

    sweep: str
    arm: str
    seed: int
    score: float
    score_interval: Interval
    most_likely: float | None
    most_likely_interval: Interval
    median: float | None
    members: int
    steps: int
    unit: str
    seconds: float
    machine: str
    commit: str
    config: str

    @property
    def key(self) -> tuple[str, str, int]:
        """What a later result replaces."""
        return self.sweep, self.arm, self.seed

    def cells(self) -> list[str]:
        """Return the row of the table."""
        return [
            self.arm,
            str(self.seed),
            score(self.score, self.score_interval),
            "" if self.most_likely is None else score(self.most_likely, self.most_likely_interval),
            format_fitness(self.median),
            f"{self.members} x {format_count(self.steps / self.members)} {self.unit}",
            format_duration(self.seconds),
            self.machine,
            self.commit,
            self.config,
        ]


def finished(folder: Path) -> Iterator[Result]:
    """Measure every finished run of a sweep; episodes of the most likely actions are played once, and stored."""
    for row in plan([], root=folder.parent, name=folder.name).result()["runs"]:
        path = Path(row["path"])
        if row["score"] is None:
            continue
        run, compared = pbtrl.load_run(path), compared_run(RunDirectory(path))
        evaluation = most_likely(run) if run.config.env else {}
        settings = json.dumps(compared.settings, sort_keys=True).encode()
        yield Result(
            sweep=folder.name,
            arm=row["arm"].removesuffix(".yaml"),
            seed=row["seed"],
            score=row["score"],
            score_interval=list(compared.score_interval) if compared.score_interval else None,
            most_likely=evaluation.get("return_mean"),
            most_likely_interval=evaluation.get("ci95"),
            median=compared.curves.final_median,
            members=len(run.members),
            steps=row["steps"],
            unit=compared.header.steps,
            seconds=row["seconds"],
            machine=compared.info["versions"]["processor"],
            commit=format_commit(compared.info["git"] or "", 7),
            config=hashlib.sha256(settings).hexdigest()[:8],
        )


def most_likely(run: pbtrl.Run) -> dict[str, Any]:
    """Return the evaluation of the best member's most likely actions."""
    for path in sorted((run.path / "eval").glob("*.json")):
        for stored in read_json_list(path):
            own = run.best and stored["snapshot"] == run.best["snapshot"]
            if own and stored["deterministic"] and (stored["episodes"], stored["seed"]) == (EPISODES, 0):
                return stored
    result = run.evaluate(deterministic=True, episodes=EPISODES, seed=0)
    assert isinstance(result, dict)
    return result


def score(mean: float, interval: Interval) -> str:
    """Format a mean with its interval, which a single evaluation does not have."""
    return f"{format_fitness(mean)} [{', '.join(map(format_fitness, interval))}]" if interval else format_fitness(mean)


def load() -> list[Result]:
    """Read the results that were kept."""
    return [Result(**json.loads(line)) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def keep(new: Iterable[Result]) -> list[Result]:
    """Add results to those that were kept, and return all in the order of sweep, arm and seed."""
    results = {result.key: result for result in [*load(), *new]}
    ordered = [results[key] for key in sorted(results)]
    RESULTS.write_text("".join(json.dumps(asdict(result)) + "\n" for result in ordered))
    return ordered


def section(name: str, results: list[Result]) -> str:
    """Write the part of the page about a sweep; runs of an arm whose config has changed have a mean of their own."""
    lines = [f"## {name}", ""]
    results = sorted(results, key=lambda result: (result.arm, result.config, result.seed))
    for (arm, _), group in groupby(results, key=lambda result: (result.arm, result.config)):
        scores = [result.score for result in group]
        bounds = statistics.interval(statistics.iqm, scores)
        mean = score(statistics.iqm(scores), list(bounds) if bounds else None)
        lines.append(f"- {arm}: interquartile mean {mean}, seeds: {len(scores)}")
    if name in PUBLISHED:
        lines.append(f"- {PUBLISHED[name]}")
    rows = [HEADER, ["---"] * len(HEADER), *(result.cells() for result in results)]
    return "\n".join([*lines, "", *(f"| {' | '.join(cells)} |" for cells in rows), ""])


def page(results: Iterable[Result]) -> str:
    """Write the page."""
    sweeps = groupby(results, key=lambda result: result.sweep)
    return "\n".join([OPENING, *(section(name, list(group)) for name, group in sweeps)])


def main() -> None:
    """Keep the finished runs of the sweeps that are named, and write the page."""
    results = keep(result for folder in sys.argv[1:] for result in finished(Path(folder)))
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
