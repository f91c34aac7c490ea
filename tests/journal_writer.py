"""Writes the journal of a run directory by hand: decisions, reports and failures in a few words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.core.population import FitnessRule
from pbtrl.core.records import Record
from pbtrl.storage.journal import Journal, Line
from pbtrl.storage.run_header import RunHeader

START = 1_700_000_000.0


class Listening:
    """Listener that keeps all records."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def event(self, record: Record) -> None:
        self.records.append(record)


def best_json(member: str, score: float | None, *, snapshot: str = "", selection: Any = (), **evaluation: Any) -> Line:
    """Content of best.json; `selection` has the mean of each candidate by its id."""
    return {
        "schema": 1,
        "member": member,
        "snapshot": snapshot or f"{member}/000000",
        "sha256": "",
        "evaluation": {"member": member, "return_mean": score, "episodes": 30, **evaluation},
        "selection": [{"member": m, "return_mean": mean, "episodes": 16} for m, mean in dict(selection).items()],
    }


class JournalWriter:
    """Append lines by `decide`, `report` and `fail`, fold them and notify `listener`, as the controller does."""

    def __init__(self, run: Path, size: int = 2, horizon: int = 1000, **fields: Any) -> None:
        fields = {"frames_per_step": 4, "hyperparameters": ("learning_rate", "unroll_length"), **fields}
        rule = fields.pop("rule", FitnessRule(window=10, min_episodes=1))
        self.run, self.header = run, RunHeader(run.name, fields.pop("seed", 1), size, horizon, rule, **fields)
        run.mkdir(parents=True, exist_ok=True)
        self.population = self.header.population()
        self.listener: Any = Listening()
        self.elapsed = 0.0
        self.records: list[Record] = []
        self._append(self.header.to_line())

    def decide(self, *assignments: Assignment, wait: float = 10.0) -> None:
        self._write({"kind": "decision", "assignments": [a.to_json() for a in assignments]}, wait)

    def retire(self, *members: str) -> None:
        self._write({"kind": "decision", "assignments": [], "free": 0, "retired": list(members)}, 0.0)

    def start(self, member: str) -> None:
        """Decide the first slice of a member, which need not exist yet."""
        values = {"learning_rate": 0.01, "unroll_length": 20}
        self.decide(Assignment(f"{member}/000000", member, None, 0, 100, values, 1))

    def next(self, member: str, every: int = 100, **changes: Any) -> Assignment:
        """The member's next assignment; `donor=` copies weights too unless `parent=` is given."""
        m = self.population.members[member]
        donor = changes.get("donor")
        default = {
            "parent": self.population.members[donor].snapshot if donor else m.snapshot,
            "hyperparameters": m.hyperparameters or {"learning_rate": 0.01, "unroll_length": 20},
        }
        name = f"{member}/{m.generation + 1:06d}"
        return Assignment(name, member, start=m.step, stop=m.step + every, seed=1, **{**default, **changes})

    def report(self, member: str, *returns: float, wait: float = 10.0, **changes: Any) -> None:
        a = self.population.members[member].pending
        assert a
        done = Report(a.id, member, a.stop, a.hyperparameters, returns, (25,) * len(returns)).to_json()
        self._write({"kind": "report", **done, **changes}, wait)

    def fail(self, member: str, error: str = "worker killed by signal 9", *, given_up: bool = False) -> None:
        a = self.population.members[member].pending
        assert a
        self._write({"kind": "failure", **Failure(a.id, member, error).to_json(), "given_up": given_up}, 10.0)

    def end(self, kind: str) -> None:
        self._write({"kind": kind, "reason": "budget"}, 10.0)

    def choose(self, member: str, score: float | None, **changes: Any) -> None:
        """Write best.json; arguments as of `best_json`."""
        (self.run / "best.json").write_text(json.dumps(best_json(member, score, **changes)))

    def metrics(self, member: str, step: int | None = None, text: str = "", **values: float) -> None:
        """A line of the member's metrics; `loss__policy=` becomes `loss/policy`."""
        folder = self.run / "members" / member
        folder.mkdir(parents=True, exist_ok=True)
        a = self.population.members[member].pending
        line = {"assignment": a.id if a else "?", "time": START + self.elapsed}
        line |= {"step": step} if step is not None else {}
        line |= {k.replace("__", "/"): v for k, v in values.items()}
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(text or json.dumps(line) + "\n")

    def _write(self, line: Line, wait: float) -> None:
        self.elapsed += wait
        line["timing"] = {**line.get("timing", {}), "time": START + self.elapsed, "elapsed": self.elapsed}
        self.listener.event(self._append(line))

    def _append(self, line: Line) -> Record:
        journal = Journal(self.run / "journal.jsonl")
        seen = journal.append(line)
        journal.close()
        self.population.record(seen)
        self.records.append(seen)
        return seen


def one_copy(run: Path, **fields: Any) -> JournalWriter:
    """Two members, two generations; m01 (fitness -5) copies m00 (fitness 3) and halves its learning rate."""
    w = JournalWriter(run, **fields)
    w.decide(w.next("m00"), w.next("m01", hyperparameters={"learning_rate": 0.1, "unroll_length": 5}))
    w.report("m00", 1.0, 5.0)
    w.report("m01", -4.0, -6.0)
    w.decide(
        w.next("m00"),
        w.next(
            "m01",
            donor="m00",
            hyperparameters={"learning_rate": 0.005, "unroll_length": 20},
            note="exploit m00",
        ),
    )
    return w


def many_trials(run: Path, count: int = 100, places: int = 4) -> JournalWriter:
    """A search whose first trials have retired, the later the fitter, and whose last ones train."""
    w = JournalWriter(run, size=places)
    for place in range(count):
        w.start(f"m{place:02d}")
        if place < count - places:
            w.report(f"m{place:02d}", float(place))
            w.retire(f"m{place:02d}")
    return w
