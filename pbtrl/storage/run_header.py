"""First line of a journal: everything that a reader needs to interpret the other lines.

    {"kind": "run", "schema": 1, "name": "pong", "seed": 1, "size": 8,
     "rule": {"source": "training", ...}, "frames_per_step": 4, "horizon": 20000000, "unit": "env_steps",
     "hyperparameters": ["learning_rate", ...], "bounds": {"": {"learning_rate": [1e-5, 0.01]}},
     "deterministic": "yes, ..."}

A `resume` line may contain a longer `horizon` and another `total`, a `set` line other `bounds`; the last ones count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from pbtrl.core.dimensions import AGENT
from pbtrl.core.messages import Hyperparameters
from pbtrl.core.naming import INITIAL
from pbtrl.core.population import FitnessRule, Population
from pbtrl.core.records import Record, RunChanged, RunResumed
from pbtrl.core.values import LARGEST_EXACT_INTEGER, LARGEST_SEED, MAX_MEMBERS
from pbtrl.errors import JournalError
from pbtrl.storage.json_files import SCHEMA

MOST_STEPS = MAX_MEMBERS * LARGEST_EXACT_INTEGER  # of a population


@dataclass(frozen=True)
class RunHeader:
    """Properties of a whole run.

    Attributes:
        name: name of the run, and of its directory unless that was moved.
        seed: root of all randomness.
        size: number of members.
        horizon: budget of a member (in `unit`).
        rule: definition of the fitness.
        frames_per_step: simulator frames per env step (action repeat: ALE 4, MuJoCo 1); 1 outside RL.
        unit: unit of every clock: `env_steps`, or `steps` outside RL.
        metric: name of the fitness, as in tables and plots: `fitness`, `accuracy`, `BLEU`.
        hyperparameters: names of the searched hyperparameters, in the config's order.
        bounds: [min, max] of exploration by hyperparameter, for each agent of a mixed population, or for "" in a
            population of one agent. Choices are not listed; empty if the strategy does not explore.
        deterministic: `yes, ...` with its conditions, or `no, because ...`.
        spaces: the env's own `observation` and `action` spaces as JSON; empty outside RL and in older runs.
        roles: role of each member that has one, by id: sub-populations and evaluators.
        candidate_roles: roles whose members are candidates for the best; empty for all members.
        total: budget of the whole population (in `unit`), if it is not `size` times `horizon`.
        initial: where the snapshot is from that all members begin from (`init_from`): `run` (a path), `snapshot` and
            `step` there, and `sha256` of the manifest of this run's copy. Empty if members begin with fresh weights.
    """

    name: str
    seed: int
    size: int
    horizon: int
    rule: FitnessRule = field(default_factory=FitnessRule)
    frames_per_step: int = 1
    unit: str = "env_steps"
    metric: str = "fitness"
    hyperparameters: tuple[str, ...] = ()
    bounds: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    deterministic: str = "yes"
    spaces: Mapping[str, Any] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    candidate_roles: tuple[str, ...] = ()
    total: int | None = None
    initial: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Validate all fields, so that readers need not.

        Raises:
            ValueError: a field is not of its type or out of range.
        """
        for f in ("seed", "size", "horizon", "frames_per_step"):
            if type(getattr(self, f)) is not int:
                raise ValueError(f"{f} must be an integer, not {getattr(self, f)!r}")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"seed must be in [0, 2^128], not {self.seed}")
        for f in ("horizon", "frames_per_step"):
            if not 1 <= getattr(self, f) <= LARGEST_EXACT_INTEGER:
                raise ValueError(f"{f} must be in [1, 2^53], not {getattr(self, f)}")
        self.rule.check()
        if self.total is not None and (type(self.total) is not int or not 0 < self.total <= MOST_STEPS):
            raise ValueError(f"total must be a positive integer, not {self.total!r}")
        roles = (*self.roles, *self.roles.values(), *self.candidate_roles)
        for text in (self.name, self.unit, self.metric, self.deterministic, *self.hyperparameters, *roles):
            if not isinstance(text, str):
                raise ValueError(f"{text!r} must be text")
        if self.initial and not all(isinstance(self.initial.get(key), str) for key in ("run", "snapshot", "sha256")):
            raise ValueError(f"initial must name run, snapshot and sha256, not {self.initial!r}")
        if not 1 <= self.size <= MAX_MEMBERS:
            raise ValueError(f"size must be in [1, {MAX_MEMBERS:,}], not {self.size:,}")
        for pair in (pair for bounds in self.bounds.values() for pair in bounds.values()):
            if len(pair) != 2 or not all(isinstance(x, int | float) and math.isfinite(x) for x in pair):
                raise ValueError(f"bounds must be pairs of numbers, not {pair!r}")

    def at_bound(self, values: Hyperparameters) -> dict[str, Literal["min", "max"]]:
        """Hyperparameters of a member that are at a bound, compared in single precision."""
        reached: dict[str, Literal["min", "max"]] = {}
        for name, (least, most) in self.bounds.get(str(values.get(AGENT, "")), {}).items():
            number = values.get(name)
            if isinstance(number, int | float):
                if math.isclose(number, least, rel_tol=1e-6):
                    reached[name] = "min"
                elif math.isclose(number, most, rel_tol=1e-6):
                    reached[name] = "max"
        return reached

    @property
    def budget(self) -> int:
        """Budget of the whole population (in `unit`)."""
        return self.total or self.size * self.horizon

    @property
    def is_return(self) -> bool:
        """True if the fitness is a mean of raw returns."""
        return self.unit == "env_steps" and self.metric == "fitness"

    @property
    def steps(self) -> str:
        """Unit in words: `env steps` or `steps`."""
        return self.unit.replace("_", " ")

    def population(self) -> Population:
        """Create the population in its initial state."""
        return Population(
            self.size, self.seed, self.rule, roles=self.roles, candidate_roles=self.candidate_roles,
            initial=INITIAL if self.initial else None,
        )  # fmt: skip

    @property
    def origin(self) -> str:
        """Origin of the initial weights of all members, in words; empty for fresh weights."""
        if not self.initial:
            return ""
        return f"all members began from {self.initial['snapshot']} of {self.initial['run']}"

    def to_line(self) -> dict[str, Any]:
        """Convert to the first line of a journal."""
        return {
            "kind": "run",
            "schema": SCHEMA,
            **asdict(self),
            "hyperparameters": list(self.hyperparameters),
            "candidate_roles": list(self.candidate_roles),
        }

    @classmethod
    def from_line(cls, line: Mapping[str, Any]) -> RunHeader:
        """Parse the first line of a journal; unknown keys are ignored.

        Raises:
            ValueError: a value is missing or invalid.
        """
        try:
            known: dict[str, Any] = {f.name: line[f.name] for f in fields(cls) if f.name in line}
            known["rule"] = FitnessRule(**line.get("rule", {}))
            for name in ("hyperparameters", "candidate_roles"):
                known[name] = tuple(line.get(name, ()))
            parsed = cls(**known)
            parsed.check()
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"it does not describe a run: {error}") from error
        return parsed


@dataclass(frozen=True)
class HeaderRecord(Record):
    """First line of a journal."""

    header: RunHeader


def read_header(records: Iterable[Record], path: Path | str = "the journal") -> tuple[RunHeader, list[Record]]:
    """Return the header of the journal at `path`, with the changes by later lines, and all records.

    Raises:
        JournalError: the journal is empty, begins with another line, has a second header, or changes it to an invalid
            one.
    """
    all_records = list(records)
    if not all_records:
        raise JournalError(f"{path} is empty")
    if not isinstance(first := all_records[0], HeaderRecord):
        raise JournalError(f"{path}:1 is damaged: a journal begins with a line of kind run")
    header = first.header
    for number, record in enumerate(all_records, 1):
        try:
            if isinstance(record, HeaderRecord) and number > 1:
                raise ValueError("only the first line is of kind run")
            if isinstance(record, RunResumed) and record.horizon is not None:
                header = replace(header, horizon=record.horizon, total=record.total)
                header.check()
            elif isinstance(record, RunChanged) and record.bounds is not None:
                header = replace(header, bounds=record.bounds)
                header.check()
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise JournalError(f"{path}:{number} is damaged: {error}") from error
    return header, all_records
