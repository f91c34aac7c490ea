"""Fakes: cohorts that only count, and lines of a journal written by hand."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.core.population import FitnessRule, Population
from pbtrl.core.records import Record
from pbtrl.core.trainable import Outcome
from pbtrl.storage.journal import Line, dumps
from pbtrl.storage.parsing import parse_record
from pbtrl.testing.fakes import LAST, died, trained
from pbtrl.trainables.builder import TrainableBuilder
from pbtrl.trainables.quadratic import Quadratic

# A cohort without training


class OutOfMemoryError(RuntimeError):
    """Same name as torch's error, without torch."""


@dataclass
class FakeCohort:
    """Count steps, a quarter of a slice per turn; `config` names the slices that fail, and how.

    Tensors: `steps` trained by these weights, `seed` of their first slice. The return of a slice is its
    seed's last two digits, so it depends on the assignment alone. An endless slice stays in the middle until
    it is stopped.
    """

    members: tuple[str, ...]
    config: dict[str, Any]
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._weights = [{"steps": np.zeros(1), "seed": np.zeros(1)} for _ in self.members]
        self._assignments: Sequence[Assignment] = ()

    def init(self, slot: int, seed: int) -> None:
        self.calls.append(f"init {self.members[slot]}")
        self._weights[slot] = {"steps": np.zeros(1), "seed": np.array([seed % 100.0])}

    def load(self, slot: int, tensors: dict[str, np.ndarray]) -> None:
        self.calls.append(f"load {self.members[slot]}")
        self._weights[slot] = {k: v.copy() for k, v in tensors.items()}

    def begin(self, assignments: Sequence[Assignment]) -> None:
        self.calls.append(f"begin {' '.join(a.id for a in assignments)}")
        self._assignments, self._turns = assignments, 0

    @property
    def steps_done(self) -> float:
        a = self._assignments[0]
        return self._turns * (a.stop - a.start) / 4

    def advance(self) -> bool:
        if "endless" in self.config and self._turns == 2:
            self._tell()
            return False
        self._turns += 1
        for a, weights in zip(self._assignments, self._weights, strict=True):
            self._go_wrong(a.id)
            weights["steps"] += (a.stop - a.start) / 4
        return self._turns == 4

    def _tell(self) -> None:
        """Write to the named pipe `tell`, once, which waits for a reader."""
        if fifo := self.config.pop("tell", None):
            Path(fifo).write_bytes(b"half way")
            if "hang" in self.config:
                signal.pause()

    def _use(self, gpu: Path) -> None:
        """Take memory of a GPU that has room for one process; the folder `gpu` has a file per process that did."""
        (gpu / str(os.getpid())).touch()
        if any(Path("/proc", p.name).exists() for p in gpu.iterdir() if p.name != str(os.getpid())):
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def _go_wrong(self, name: str) -> None:
        if "gpu" in self.config:
            self._use(Path(self.config["gpu"]))
        if self.config.get("huge") == name.split("/")[0]:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 TiB")
        if helper := self.config.pop("helper", None):
            if pid := os.fork():
                Path(helper).write_text(str(pid))
            else:
                signal.pause()
        if name in self.config.get("raise", ()):
            raise ValueError("scripted")
        if name in self.config.get("die", ()):
            os.kill(os.getpid(), signal.SIGKILL)
        if name == self.config.get("die_once") and self._turns == 2:
            try:
                Path(self.config["died"]).touch(exist_ok=False)
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)

    def metrics(self) -> list[dict[str, float]]:
        return [{"turns": self._turns} for _ in self.members]

    def outcome(self, slot: int) -> Outcome:
        a = self._assignments[slot]
        used = dict(a.hyperparameters)
        if a.id in self.config.get("ignore_hyperparameters", ()):
            used = dict.fromkeys(used, 0.0)
        steps = self._turns * (a.stop - a.start) // 4
        return Outcome(steps, used, returns=[float(a.seed % 100)] if self._turns else [], lengths=[steps])

    def save(self, slot: int) -> dict[str, np.ndarray]:
        if self._assignments[slot].id in self.config.get("overflow", ()):
            return {**self._weights[slot], "steps": np.array([np.inf])}
        return self._weights[slot]

    def close(self) -> None:
        self.calls.append(f"close {' '.join(self.members)}")


@dataclass
class FakeBuilder:
    """Make fake cohorts; the hyperparameter `structure`, if there is one, separates members."""

    config: dict[str, Any] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def structure(self, assignment: Assignment) -> object:
        return assignment.hyperparameters.get("structure")

    def cohort(self, members: Sequence[str], threads: int, structure: object = None) -> FakeCohort:
        self.calls.append(f"cohort {' '.join(members)}")
        return FakeCohort(tuple(members), self.config, self.calls)


def build(config: str) -> FakeBuilder | TrainableBuilder:
    """Builder of the workers in tests: `tests.fakes:build`."""
    settings = json.loads(config)
    if settings.pop("unfit", False):
        raise ValueError("no such thing")
    return TrainableBuilder(Quadratic, {}) if settings.pop("toy", False) else FakeBuilder(settings)


# Journals by hand


def as_read(line: Line) -> Line:
    """Line as a reader of the file gets it."""
    seen: Line = json.loads(dumps(line))
    return seen


def decision_line(*assignments: Assignment) -> Line:
    return as_read({"kind": "decision", "assignments": [a.to_json() for a in assignments], "timing": {}})


def answer_line(message: Report | Failure, *, given_up: bool = True) -> Line:
    body = message.to_json()
    if isinstance(message, Report):
        return as_read({"kind": "report", **body})
    return as_read({"kind": "failure", **body, "given_up": given_up, "timing": {}})


def decision(*assignments: Assignment) -> Record:
    return parse_record(decision_line(*assignments), "line")


def answer(message: Report | Failure, *, given_up: bool = True) -> Record:
    return parse_record(answer_line(message, given_up=given_up), "line")


def assign(
    population: Population, member: str, every: int = 100, parent: str | None = None, **changes: Any
) -> Assignment:
    """One more slice for the member, from its own snapshot unless `parent` is given."""
    m = population.members[member]
    return replace(
        Assignment(
            id=f"{member}/{m.generation + 1:06d}",
            member=member,
            parent=parent or m.snapshot,
            start=m.step,
            stop=m.step + every,
            hyperparameters=m.hyperparameters or {"lr": 0.1 * (1 + int(member[1:]))},
            seed=1,
        ),
        **changes,
    )


SliceResult = float | None | str | Sequence[float]
"""Fitness, None, "diverged", "given up", or the returns of all episodes."""


def after_one_slice(*results: SliceResult, rule: FitnessRule = LAST, every: int = 100, seed: int = 0) -> Population:
    """Population whose members have ended their first slice with these results; member i has lr = 0.1 (1 + i)."""
    population = Population(len(results), seed, rule)
    for member, result in zip(list(population.members), results, strict=True):
        a = assign(population, member, every)
        population.record(decision(a))
        if result == "given up":
            population.record(answer(died(a)))
        elif result == "diverged":
            population.record(answer(trained(a, diverged=True)))
        elif result is None:
            population.record(answer(trained(a)))
        else:
            returns = result if isinstance(result, Iterable) and not isinstance(result, str) else [result]
            population.record(answer(trained(a, *(float(r) for r in returns))))
    return population
