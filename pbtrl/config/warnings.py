"""Warnings about settings that can run but are probably a mistake; each is one line."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pbtrl.strategies.fire_settings import FireSettings
from pbtrl.strategies.pbt_settings import PBTSettings
from pbtrl.strategies.replay_settings import ScheduleReplaySettings

if TYPE_CHECKING:
    from pbtrl.config.schema import Config

ENOUGH_POINTS = 12  # of which 11 wins are significant; of 8 points all must be


def find_warnings(config: "Config") -> Iterator[str]:
    """Yield a warning for each setting that is probably a mistake."""
    if config.slice_steps >= config.steps_per_member and config.strategy.copies:
        yield (
            f"strategy.ready.slice_steps ({config.slice_steps:,}) is the whole budget of a member "
            f"({config.steps_per_member:,} {config.unit}): nothing is ever exploited"
        )
    elif config.burn_in >= config.steps_per_member and config.strategy.copies:
        yield (
            f"strategy.ready.burn_in ({config.burn_in:,}) is not below a member's budget "
            f"({config.steps_per_member:,} {config.unit}): nothing is ever exploited"
        )
    mix, strategy = config.population.mix or {}, config.strategy
    if isinstance(strategy, PBTSettings) and strategy.copies and not strategy.exploit.across_agents:
        for name in (name for name, count in mix.items() if count == 1):
            yield (
                f"population.mix has one {name}, which has no other member to copy "
                "without strategy.exploit.across_agents"
            )
    points = strategy.schedule if isinstance(strategy, ScheduleReplaySettings) else ()
    if late := [point.at for point in points if point.at >= config.steps_per_member]:
        yield (
            f"strategy.schedule is longer than a member's budget ({config.steps_per_member:,} {config.unit}): "
            f"points from {late[0]:,} on are never reached"
        )
    if isinstance(strategy, FireSettings) and (few := strategy.points(config)) < ENOUGH_POINTS:
        yield (
            f"the longest evaluation has {few} points of the curve, so nearly all must be wins for a promotion; with "
            f"{ENOUGH_POINTS} or more (strategy.max_eval_steps, fitness.curve_interval) the test is less strict"
        )
    for agent, searched in ((c.agent, c.hparams) for c in config.per_agent_configs.values()):
        assert agent is not None
        for name in searched:
            if name.partition("_")[0] in {"adam", "rmsprop"} - {agent.optimizer}:
                yield f"hparams.{name} has no effect: the optimizer of {agent.name} is {agent.optimizer}"
    if config.env is None or config.fitness.source == "evaluation":
        return
    length = _episode_length(config.env.id)
    if isinstance(strategy, FireSettings) and config.curve_interval < length * config.env.num_envs:
        yield (
            f"fitness.curve_interval ({config.curve_interval:,}) is shorter than an episode of {length:,} steps in "
            f"each of {config.env.num_envs} envs: the curves that fire compares will have holes"
        )
    per_env = config.slice_steps // config.env.num_envs
    reset = config.env.between_slices == "reset"
    episodes = config.env.num_envs * (per_env // length) if reset else config.slice_steps // length
    if episodes < config.fitness.min_episodes:
        yield (
            f"a slice of {config.slice_steps:,} env steps holds about {episodes} episodes of {length:,} steps, "
            f"fewer than fitness.min_episodes ({config.fitness.min_episodes}): members may have no fitness"
        )


def _episode_length(env_id: str) -> int:
    """Estimate the length of an episode, in env steps; used only for a warning."""
    physics = ("HalfCheetah", "Ant", "Hopper", "Humanoid", "Walker2d", "Swimmer", "InvertedPendulum")
    return 1000 if env_id.startswith(("ALE/", *physics)) else 200
