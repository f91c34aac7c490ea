"""The first line of a journal: what a reader must know of a run before it can fold the rest.

    {"kind": "run", "schema": 1, "name": "pong", "seed": 1, "size": 8,
     "rule": {"source": "training", ...}, "frames_per_step": 4, "horizon": 20000000, "unit": "env_steps",
     "hyperparameters": ["learning_rate", ...], "bounds": {"": {"learning_rate": [1e-5, 0.01]}},
     "deterministic": "yes, ..."}

A `resume` line may carry a longer `horizon`; the last one holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain
from typing import Any, Literal

from pbtrl.core.dimensions import AGENT, MEMBERS
from pbtrl.core.messages import Hyperparameters
from pbtrl.core.population import FitnessRule, Population
from pbtrl.errors import JournalError
from pbtrl.storage.journal import Line
from pbtrl.storage.json_files import SCHEMA

BEYOND = 2**256  # a seed or a number of steps


@dataclass(frozen=True)
class RunHeader:
    """What holds for a whole run.

    Attributes:
        name: of the run; its directory has the same, unless it was moved.
        seed: root of all randomness.
        size: number of members.
        horizon: budget of a member (in `unit`).
        rule: how episodes become a fitness.
        frames_per_step: simulator frames per env step, our action repeat (ALE 4, MuJoCo 1); 1 outside RL.
        unit: of every clock: `env_steps`, or `steps` outside RL.
        hyperparameters: the searched ones, in the config's order.
        bounds: for each agent of a mix, or "" without one, the least and the most that exploring may reach, by
            hyperparameter; nothing for a choice, nor where the strategy does not explore.
        deterministic: `yes, ...` and per what, or `no, because ...`.
        spaces: the env's own `observation` and `action` spaces as JSON; empty outside RL and in older runs.
    """

    name: str
    seed: int
    size: int
    horizon: int
    rule: FitnessRule = field(default_factory=FitnessRule)
    frames_per_step: int = 1
    unit: str = "env_steps"
    hyperparameters: tuple[str, ...] = ()
    bounds: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    deterministic: str = "yes"
    spaces: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise ValueError for what no run has: readers need not look again."""
        for f in ("seed", "size", "horizon", "frames_per_step"):
            if type(getattr(self, f)) is not int:
                raise ValueError(f"{f} must be an integer, not {getattr(self, f)!r}")
            if abs(getattr(self, f)) > BEYOND:
                raise ValueError(f"{f} is larger than it can be")
        for text in (self.name, self.unit, self.deterministic, *self.hyperparameters):
            if not isinstance(text, str):
                raise ValueError(f"{text!r} must be text")
        if not 1 <= self.size <= MEMBERS:
            raise ValueError(f"size must be in [1, {MEMBERS:,}], not {self.size:,}")
        for pair in (pair for bounds in self.bounds.values() for pair in bounds.values()):
            if len(pair) != 2 or not all(isinstance(x, int | float) and math.isfinite(x) for x in pair):
                raise ValueError(f"bounds must be pairs of numbers, not {pair!r}")

    def at_bound(self, values: Hyperparameters) -> dict[str, Literal["min", "max"]]:
        """The hyperparameters of a member that stand at a bound, to single precision."""
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
        """Steps of the whole population."""
        return self.size * self.horizon

    @property
    def steps(self) -> str:
        """The unit as words: `env steps`, or `steps`."""
        return self.unit.replace("_", " ")

    def population(self) -> Population:
        """The population before anything happened."""
        return Population(self.size, self.seed, self.rule)

    def to_line(self) -> Line:
        """As the first line of a journal."""
        return {
            "kind": "run",
            "schema": SCHEMA,
            **asdict(self),
            "hyperparameters": list(self.hyperparameters),
        }

    @classmethod
    def from_line(cls, line: Line) -> RunHeader:
        """Back again; keys that it does not know are ignored.

        Raises:
            JournalError: this is not the first line of a journal.
        """
        if line["kind"] != "run":
            raise JournalError(f"a journal begins with a line of kind run, not {line['kind']}")
        try:
            known: dict[str, Any] = {f.name: line[f.name] for f in fields(cls) if f.name in line}
            known["rule"] = FitnessRule(**line.get("rule", {}))
            known["hyperparameters"] = tuple(line.get("hyperparameters", ()))
            found = cls(**known)
            found.check()
            return found
        except (TypeError, ValueError, AttributeError) as error:
            raise JournalError(f"the first line of the journal does not describe a run: {error}") from error


def header(lines: Iterable[Line]) -> RunHeader:
    """The header of a journal, with the horizon of its last `resume` line that carries one.

    Raises:
        JournalError: the journal is empty, or its first line is another.
    """
    found, _ = read_header(lines)
    return found


def read_header(lines: Iterable[Line]) -> tuple[RunHeader, list[Line]]:
    """The header of a journal, and all its lines."""
    rest = iter(lines)
    first = next(rest, None)
    if first is None:
        raise JournalError("the journal is empty")
    found, every = RunHeader.from_line(first), list(chain([first], rest))
    for line in every:
        if line["kind"] == "resume" and isinstance(line.get("horizon"), int):
            found = replace(found, horizon=line["horizon"])
    return found, every


def population(lines: Iterable[Line]) -> Population:
    """The population folded from a whole journal."""
    found, every = read_header(lines)
    return found.population().replay(every)
