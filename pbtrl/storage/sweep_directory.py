"""Directory of a sweep: sweep.json, which describes its arms, and one run per arm and seed.

    runs/<name>/  sweep.json  pbt-s1/  random_search-s1/  pbt-s2/  ...

sweep.json holds the resolved config of every arm, so that the sweep can be continued without the files that it began
with.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, ValidationError

from pbtrl.core.naming import RUN_NAME
from pbtrl.core.values import Whole
from pbtrl.errors import DamagedError, RunError, printable
from pbtrl.storage.json_files import SCHEMA, read_json
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_lookup import SWEEP_FILE
from pbtrl.storage.run_state import State, state
from pbtrl.system.files import write_atomically
from pbtrl.system.strict_json import to_json


class ArmRecord(BaseModel):
    """One arm in sweep.json.

    Attributes:
        name: beginning of the names of its runs.
        config: config that it was made of, as the user named it.
        settings: values of the grid.
        steps: planned steps of one run.
        sha256: digest of `text`.
        text: the resolved config as YAML.
    """

    name: Annotated[str, StringConstraints(pattern=f"^{RUN_NAME.pattern}$")]
    config: str
    settings: dict[str, Any]
    steps: int
    sha256: str
    text: str


class SweepRecord(BaseModel):
    """Content of sweep.json.

    Attributes:
        grid: values of every setting that varies.
        seeds: seeds of the replications, in the order of training.
        unequal: whether arms may train for different numbers of steps.
        arms: the arms, in the order of training.
    """

    grid: dict[str, list[Any]]
    seeds: Annotated[list[Annotated[Whole, Field(ge=0)]], Field(min_length=1)]
    unequal: bool
    arms: Annotated[list[ArmRecord], Field(min_length=1)]

    @property
    def run_names(self) -> list[str]:
        """Names of all runs, replication by replication."""
        return [run_name(arm.name, seed) for seed in self.seeds for arm in self.arms]


def run_name(arm: str, seed: int) -> str:
    """Return the name of the run of an arm and a seed."""
    return f"{arm}-s{seed}"


def state_in_sweep(run: RunDirectory) -> State | Literal["not started"]:
    """Return the state of a run of a sweep; `not started` before its first line."""
    return state(run) if run.has_begun() else "not started"


def sweep_status(folder: Path) -> dict[str, Any]:
    """Return the state of a sweep, and the number of its runs by state.

    The state is `finished` if all runs are, else `running`, `stale` or `crashed` if one is, else `stopped`.

    Raises:
        DamagedError: sweep.json is damaged.
    """
    states = Counter(state_in_sweep(RunDirectory(folder / name)) for name in read_sweep(folder).run_names)
    order = ("running", "stale", "crashed")
    overall = "finished" if set(states) == {"finished"} else next((s for s in order if s in states), "stopped")
    return {"state": overall, "runs": dict(states)}


def text_digest(text: str) -> str:
    """Return the SHA-256 of a config's text."""
    return hashlib.sha256(text.encode()).hexdigest()


def read_sweep(folder: Path) -> SweepRecord:
    """Read the sweep.json of a directory.

    Raises:
        RunError: there is none.
        DamagedError: it holds something that pbtrl never wrote.
    """
    path = folder / SWEEP_FILE
    try:
        record = SweepRecord.model_validate(read_json(path))
    except FileNotFoundError:
        raise RunError(f"no sweep in {folder}: it has no {SWEEP_FILE}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DamagedError(printable(f"{path} is damaged: {where}: {first['msg']}").replace("\n", " ")) from error
    names = [arm.name for arm in record.arms]
    if len(set(names)) < len(names) or len(set(record.seeds)) < len(record.seeds):
        raise DamagedError(f"{path} is damaged: an arm or a seed is listed twice")
    if changed := [arm.name for arm in record.arms if text_digest(arm.text) != arm.sha256]:
        raise DamagedError(f"{path} is damaged: the config of {changed[0]} does not have its SHA-256")
    return record


def write_sweep(folder: Path, record: SweepRecord) -> None:
    """Write sweep.json."""
    content = {"schema": SCHEMA, **json.loads(record.model_dump_json())}
    write_atomically(folder / SWEEP_FILE, to_json(content, indent=2) + "\n")
