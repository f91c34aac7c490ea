"""Policies from snapshots, which need no env."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pbtrl import envs
from pbtrl.build.rl import RLBuilder, env_spaces
from pbtrl.config.schema import Config
from pbtrl.core.tensors import Tensors
from pbtrl.envs.space_json import space_from_json
from pbtrl.envs.vector import present

if TYPE_CHECKING:
    from pbtrl.rl.policy import Policy


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
        presented = present(own, "policy")
    else:
        presented = env_spaces(config)
    builder = RLBuilder(config, agent, presented)
    observation = presented.own_observation_space or presented.single_observation_space
    action = presented.own_action_space or presented.single_action_space
    return Policy(builder.agent, builder.to_env, snapshot, observation, action, seed)
