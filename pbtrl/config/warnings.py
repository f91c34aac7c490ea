"""Warnings about settings that can run but are probably a mistake; each is one line."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pbtrl.config.sections import Execution

if TYPE_CHECKING:
    from pbtrl.config.schema import Config

PASS_LIMITS = frozenset({"max_log_ratio", "target_kl"})
"""Hyperparameters that end an agent's passes over a block."""

RAY_ONLY = tuple(name for name in Execution.model_fields if name not in ("backend", "workers", "device", "cohort"))

Idle = tuple[str, object, tuple[str, ...], str]
"""Path of a section, the section, those of its settings that have no effect, and why."""


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
    yield from config.strategy.warnings(config)
    for path, section, names, why in _idle(config):
        defaults = type(section)()
        changed = [name for name in names if getattr(section, name) != getattr(defaults, name)]
        yield from (f"{path}.{name} has no effect: {why}" for name in changed)
    for agent, searched in ((c.agent, c.hparams) for c in config.per_agent_configs.values()):
        assert agent is not None
        for name in searched:
            if name.partition("_")[0] in {"adam", "rmsprop"} - {agent.optimizer}:
                yield f"hparams.{name} has no effect: the optimizer of {agent.name} is {agent.optimizer}"
            if name in PASS_LIMITS and "epochs" not in searched and getattr(agent, "epochs", None) == 1:
                yield f"hparams.{name} has no effect: {agent.name} makes one pass over each block (epochs is 1)"
    if config.env is None or config.fitness.source == "evaluation":
        return
    length = config.env.typical_episode
    per_env = config.slice_steps // config.env.num_envs
    reset = config.env.between_slices == "reset"
    episodes = config.env.num_envs * (per_env // length) if reset else config.slice_steps // length
    if episodes < config.fitness.min_episodes:
        yield (
            f"a slice of {config.slice_steps:,} env steps holds about {episodes} episodes of {length:,} steps, "
            f"fewer than fitness.min_episodes ({config.fitness.min_episodes}): members may have no fitness"
        )


def _idle(config: "Config") -> Iterator[Idle]:
    """Yield settings that the backend, the model or the strategy does not use."""
    execution, strategy = config.execution, config.strategy
    if execution.backend != "ray":
        yield "execution", execution, RAY_ONLY, f"execution.backend is {execution.backend}"
    if config.env is None:
        why = "a trainable has no episodes"
        yield "fitness", config.fitness, ("source", "window_episodes", "min_episodes", "episodes"), why
        yield "final", config.final, ("selection_episodes", "episodes", "max_steps"), why
    if not strategy.copies and not strategy.explores:
        why = f"{strategy.name} neither copies nor explores"
        yield "population", config.population, ("reference_members",), why
        yield "strategy.ready", strategy.ready, ("burn_in",), why
