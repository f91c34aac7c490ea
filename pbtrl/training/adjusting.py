"""`pbtrl set`: requests to change a run that is stopped or that another process trains.

pbtrl set -> journal                             of a stopped run, under its lock
pbtrl set -> requests/*.json -> controller -> journal    of a run that trains, whose controller alone writes lines
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from pbtrl.build.factory import exploration_bounds, make_strategy
from pbtrl.config.adjust import adjust, adjusted
from pbtrl.config.schema import Config
from pbtrl.core.population import Population
from pbtrl.core.records import Record, RunChanged, RunFinished, duration
from pbtrl.errors import RunError
from pbtrl.storage.journal import Journal
from pbtrl.storage.json_files import read_json
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_status import check_member
from pbtrl.storage.stored_config import load_stored_config
from pbtrl.strategies import Strategy
from pbtrl.system.files import make_directory, write_atomically
from pbtrl.system.strict_json import to_json

PATIENCE = 10.0  # seconds to wait for a run to read a request


def set_run(run: RunDirectory, items: Sequence[str], *, trusted: bool = False) -> str:
    """Change a run from its next decision on. Returns what was done, in words.

    Args:
        run: run directory.
        items: `key=value` as in `config.adjust.adjustable`, or `retire=m03,m04`.
        trusted: import modules that the run directory names.

    Raises:
        RunError: a key may not change, a value is invalid, or the run is finished; nothing was changed.
    """
    run.check_links()
    config = load_stored_config(run, trusted=trusted, makes_envs=False)
    if run.holder() is None:
        with run.lock():
            _checked(run, config, items)
            refused = _write_unread(run, config)
            records, change = _checked(run, config, items)
            _write(run, records, change)
        return "\n".join([*refused, f"{change.text}: read by the first decision after a resume"])
    _, change = _checked(run, config, items)
    make_directory(run.requests)
    request = run.requests / f"{time.time_ns()}-{os.getpid()}.json"
    write_atomically(request, to_json({"items": list(items)}))
    deadline = time.monotonic() + PATIENCE
    while request.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    if request.exists():
        return f"{change.text}: requested; the run has not read it yet"
    if not any(isinstance(record, RunChanged) and record.request == request.name for record in run.load()[1]):
        raise RunError(f"{change.text}: the run refused it; its output says why")
    return f"{change.text}: read by the next decision"


def _write_unread(run: RunDirectory, stored: Config) -> list[str]:
    """Write unread requests into the journal of a stopped run. Returns the refused ones, in words."""
    _, records, population = run.load()
    refused: list[str] = []
    for change, _ in Requests(run, adjusted(stored, records), population, records, refused.append)():
        population.record(_write(run, records, change))
    return refused


def _write(run: RunDirectory, records: Sequence[Record], change: RunChanged) -> Record:
    """Write a change into the journal of a stopped run."""
    journal = Journal(run.journal_path)
    try:
        timing = {"time": time.time(), "elapsed": duration(records)}
        return journal.append({"kind": "set", **change.to_json(), "timing": timing})
    finally:
        journal.close()


class Requests:
    """Requests to a run that trains, in their order.

    Args:
        run: run directory.
        config: config with the changes so far.
        population: live population.
        records: journal of earlier sessions; requests in it were answered.
        warn: called with one line for a request that came too late to be possible.
    """

    def __init__(
        self, run: RunDirectory, config: Config, population: Population, records: Sequence[Record],
        warn: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._run, self._config, self._population, self._warn = run, config, population, warn
        self._answered = {record.request for record in records if isinstance(record, RunChanged)}

    def __call__(self) -> Iterator[tuple[RunChanged, Strategy]]:
        """Yield a change, which must then be written, and the strategy from then on."""
        for path in sorted(self._run.requests.glob("[0-9]*.json")):
            if path.name not in self._answered:
                try:
                    items = [str(item) for item in read_json(path)["items"]]
                    change, self._config = _resolved(self._run, self._config, self._population, items)
                except (RunError, KeyError, TypeError) as error:
                    self._warn(f"a request was refused: {error}")
                else:
                    yield replace(change, request=path.name), make_strategy(self._config)
            path.unlink(missing_ok=True)


def _checked(run: RunDirectory, stored: Config, items: Sequence[str]) -> tuple[list[Record], RunChanged]:
    _, records, population = run.load()
    if isinstance(records[-1], RunFinished):
        raise RunError(f"{run} is finished: no decision would read it")
    change, _ = _resolved(run, adjusted(stored, records), population, items)
    return records, change


def _resolved(
    run: RunDirectory, config: Config, population: Population, items: Sequence[str]
) -> tuple[RunChanged, Config]:  # fmt: skip
    """Return the change that these items ask for, and the config from then on."""
    if not items:
        raise RunError("nothing to set: write key=value, or retire=MEMBER")
    chosen = [item.partition("=")[2] for item in items if item.partition("=")[0].strip() == "retire"]
    retired = list(dict.fromkeys(member.strip() for text in chosen for member in text.split(",")))
    _check_retired(run, config, population, retired)
    changed, settings = adjust(config, [item for item in items if item.partition("=")[0].strip() != "retire"])
    return RunChanged(settings, tuple(retired), exploration_bounds(changed) if settings else None), changed


def _check_retired(run: RunDirectory, config: Config, population: Population, retired: Sequence[str]) -> None:
    if not retired:
        return
    if not config.strategy.retires_on_request:
        raise RunError(f"the strategy {config.strategy.name} retires no members on request; pbt does")
    for member in retired:
        check_member(run, population, member)
        if population.members[member].retired:
            raise RunError(f"{member} is retired already")
    if all(m.retired or m.id in retired for m in population.members.values()):
        raise RunError("one member must go on: to end the run, stop it with Ctrl-C")
