"""Warm start (`init_from`): a snapshot of another run, from which every member of a new run begins.

The new run keeps a copy, `members/initial/snapshots/000000`, so it does not need the other run later. As with a copy
between members, everything that learned comes along: weights, target network, normalizer statistics, the optimizer's
moments. A run with another optimizer begins with fresh moments. Hyperparameters are not part of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pbtrl.agents.settings import FeudalSettings, NetworkSettings
from pbtrl.build.factory import initial_tensors, space_descriptions
from pbtrl.build.trainables import trainable_builder
from pbtrl.config.load import read
from pbtrl.config.renamed_keys import modernize
from pbtrl.config.schema import Config
from pbtrl.core.dimensions import AGENT
from pbtrl.core.naming import INITIAL
from pbtrl.core.tensors import Tensors, mismatch
from pbtrl.errors import ConfigProblem, DamagedError, RunError, SnapshotError
from pbtrl.storage.best_member import snapshot_digest, snapshots_to_evaluate
from pbtrl.storage.json_files import SCHEMA
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_header import RunHeader
from pbtrl.storage.run_lookup import find, is_run_group

OPTIMIZER = ("adam.", "rmsprop.")
"""Beginnings of the names of tensors that only one optimizer has."""


@dataclass(frozen=True)
class WarmStart:
    """Snapshot of another run.

    Attributes:
        tensors: its tensors, as the new run's members load them.
        run: path of the other run.
        snapshot: name of the snapshot there.
        step: clock of the member there.
    """

    tensors: Tensors
    run: str
    snapshot: str
    step: int

    def copy_to(self, run: RunDirectory) -> dict[str, Any]:
        """Write the copy of a new run. Returns `RunHeader.initial`."""
        origin = {"run": self.run, "snapshot": self.snapshot, "step": self.step}
        run.snapshots.commit(INITIAL, self.tensors, {"schema": SCHEMA, "origin": origin})
        return {**origin, "sha256": snapshot_digest(run, INITIAL)}


def find_warm_start(config: Config, root: Path) -> WarmStart | None:
    """Load the snapshot that `init_from` names and check that it fits; None without `init_from`.

    Args:
        config: prepared config of the new run.
        root: directory of all runs, or of a sweep among them.

    Raises:
        ConfigProblem: there is no such run, member or snapshot, or it does not fit; the first mismatch is named.
    """
    if config.init_from is None:
        return None
    try:
        run, member = _source(config.init_from, root)
        header = run.load()[0]
        snapshot = INITIAL if member == "initial" else snapshots_to_evaluate(run, member)[0]
        tensors, state = run.snapshots.load(snapshot)
        tree = modernize(read(run.resolved_config).data)
        step, agent = _origin(state)
        fitting = _fitted(config, header, tree, agent, tensors)
    except ConfigProblem:
        raise
    except RunError as error:
        raise ConfigProblem(str(error), ("init_from",)) from error
    return WarmStart(fitting, str(run.path.resolve()), snapshot, step)


def _source(text: str, root: Path) -> tuple[RunDirectory, str]:
    """Split `RUN/member`; the member is `best` unless given."""
    name, _, member = text.rpartition("/")
    if not name or not re.fullmatch(r"m\d+|best|initial", member):
        name, member = text, "best"
    return find(name, root.parent if is_run_group(root) else root), member


def _origin(state: Mapping[str, Any]) -> tuple[int, str | None]:
    """Return clock and agent of a snapshot, which for a run's own initial one are unknown."""
    try:
        if "report" not in state:
            return int(state["origin"]["step"]), None
        return int(state["report"]["step"]), state["report"]["hyperparameters"].get(AGENT)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SnapshotError(f"its state cannot be read: {error!r}") from error


def _fitted(
    config: Config, header: RunHeader, tree: Mapping[str, Any], agent: str | None, tensors: Tensors
) -> Tensors:  # fmt: skip
    """Check that a snapshot fits, and return it with the optimizer's state that the config's agent has."""
    try:
        difference = next(_mismatches(config, header, tree, agent), None)
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"its config cannot be read: {error!r}") from error
    if difference is None:
        own = initial_tensors(config)[0]
        moments = {name for name in own if name.startswith(OPTIMIZER)}
        if not moments <= tensors.keys():
            tensors = {**tensors, **{name: own[name] for name in moments}}
        tensors = {name: x for name, x in tensors.items() if name in own or not name.startswith(OPTIMIZER)}
        difference = mismatch(own, tensors)
    if difference:
        raise ConfigProblem(f"{config.init_from} does not fit: {difference}", ("init_from",))
    return tensors


def _mismatches(
    config: Config, header: RunHeader, tree: Mapping[str, Any], agent: str | None
) -> Iterator[str]:  # fmt: skip
    """Yield what differs between a run's config and that of the snapshot, `tree`, in words."""
    if config.env is None:
        builder = trainable_builder(config)
        ours, theirs = config.trainable and config.trainable.name, (tree.get("trainable") or {}).get("name")
        if ours != theirs:
            yield f"it is of {theirs or 'an agent in an env'}, not of the trainable {ours}"
        for name in getattr(builder.kind, "structural", ()):
            if name in config.hparams:
                yield f"hparams.{name} decides the shape of a model, so not every member can begin from one snapshot"
        return
    if tree.get("env") is None:
        yield f"it is of the trainable {tree['trainable']['name']}, not of an agent"
        return
    assert config.agent is not None
    trained = tree["agent"] if agent is None else tree["agents"][agent]
    if (kind := trained.get("name", agent)) != config.agent.name:
        yield f"it is of the agent {kind}, not of {config.agent.name}"
    spaces = space_descriptions(config)
    for kind, own in spaces.items():
        other = header.spaces.get(kind)
        if other is not None and _shape(kind, own) != _shape(kind, other):
            yield f"its {kind} space is {_words(_shape(kind, other))}, not {_words(_shape(kind, own))}"
    for name in needed_settings(config.agent, acts_in_box=spaces["action"]["type"] == "Box"):
        own = getattr(config.agent, name)
        own = list(own) if isinstance(own, tuple) else own
        if name in trained and trained[name] != own:
            yield f"it was trained with agent.{name} {trained[name]}, not {own}"


def needed_settings(agent: NetworkSettings, *, acts_in_box: bool) -> Iterator[str]:
    """Yield the settings without which the weights of a snapshot would be another policy.

    `log_std` is one where it is an offset of the network's output; with `std: free` it is a learned weight.
    """
    offset = acts_in_box and agent.std != "free"
    for name in (f.name for f in fields(NetworkSettings)):
        if name != "precision" and (name != "log_std" or offset):
            yield name
    if isinstance(agent, FeudalSettings):
        yield "horizon"


def _shape(kind: str, space: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the bounds of observations, which may differ."""
    return {key: value for key, value in space.items() if kind == "action" or key not in ("low", "high")}


def _words(space: Mapping[str, Any]) -> str:
    return f"{space.get('type')}({', '.join(f'{k} {v}' for k, v in space.items() if k != 'type')})"
