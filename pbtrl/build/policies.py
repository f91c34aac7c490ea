"""Policies from snapshots, which need no env."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pbtrl import envs
from pbtrl.build.rl import RLBuilder, env_spaces
from pbtrl.config.schema import Config
from pbtrl.core.dimensions import AGENT
from pbtrl.core.tensors import Tensors
from pbtrl.envs.space_json import space_from_json
from pbtrl.envs.vector import convert_spaces
from pbtrl.errors import RunError
from pbtrl.storage.best_member import snapshots_to_evaluate
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_header import RunHeader
from pbtrl.storage.stored_config import check_imports

if TYPE_CHECKING:
    from pbtrl.rl.policy import Policy


@dataclass(frozen=True)
class LoadedPolicy:
    """Policy of a snapshot, and where it is from.

    Attributes:
        policy: the policy.
        snapshot: name of the snapshot.
        report: report of the slice that ended with it.
        header: header of the run.
    """

    policy: Policy
    snapshot: str
    report: Mapping[str, Any]
    header: RunHeader

    @property
    def agent(self) -> str | None:
        """Entry of the mix that the member belongs to; None without a mix."""
        entry: str | None = self.report["hyperparameters"].get(AGENT)
        return entry


def load_policy(run: RunDirectory, config: Config, member: str, *, trusted: bool, seed: int = 0) -> LoadedPolicy:
    """Load the policy of a member's newest snapshot.

    Args:
        run: run directory.
        config: config of the run.
        member: `best`, or an id.
        trusted: whether the modules that the config names may be imported, if the env must be made to get its spaces.
        seed: seed of sampled actions.

    Raises:
        RunError: the run trains no policies, there is no such member or snapshot, or a module is not trusted.
    """
    if config.env is None:
        raise RunError(f"{run} trains {config.task}, which has no policy")
    if member == "all":
        raise RunError("a policy is of one member: best, or an id such as m03")
    header = run.load()[0]
    if not header.spaces:
        run.check_links()
        check_imports(run, config.imports, trusted=trusted)
    (snapshot,) = snapshots_to_evaluate(run, member)
    tensors, state = run.snapshots.load(snapshot)
    agent = state["report"]["hyperparameters"].get(AGENT)
    policy = make_policy(config, agent, tensors, header.spaces, seed)
    return LoadedPolicy(policy, snapshot, state["report"], header)


def make_policy(
    config: Config, agent: str | None, snapshot: Tensors, spaces: Mapping[str, Any], seed: int = 0
) -> Policy:
    """Make the policy of a snapshot.

    Args:
        config: config of the run.
        agent: entry of the mix that the member belongs to; None without a mix.
        snapshot: tensors of the snapshot.
        spaces: `RunHeader.spaces`; if it is empty, the env is made to get its spaces.
        seed: seed of sampled actions.
    """
    from pbtrl.rl.policy import Policy

    if spaces:
        own = envs.Spaces(space_from_json(spaces["observation"]), space_from_json(spaces["action"]))
        presented = convert_spaces(own, "policy")
    else:
        presented = env_spaces(config)
    builder = RLBuilder(config, agent, presented)
    return Policy(builder.agent, builder.to_env, snapshot, *presented.own, seed)
