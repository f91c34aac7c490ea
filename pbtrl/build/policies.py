"""Policies from snapshots, without the env that they were trained in."""

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
    """The policy of a snapshot.

    Args:
        config: of the run.
        agent: the entry of a mix that the member is; None without a mix.
        snapshot: its tensors.
        spaces: `RunHeader.spaces`; where it is empty, the env is asked.
        seed: of sampled actions.
    """
    from pbtrl.rl.policy import Policy

    if spaces:
        own = envs.Spaces(space_from_json(spaces["observation"]), space_from_json(spaces["action"]))
        shown = present(own, "policy")
    else:
        shown = env_spaces(config)
    builder = RLBuilder(config, agent, shown)
    observation = shown.own_observation_space or shown.single_observation_space
    action = shown.own_action_space or shown.single_action_space
    return Policy(builder.agent, builder.to_env, snapshot, observation, action, seed)
