"""A config's env, slices and agents in a few words."""

from __future__ import annotations

from pbtrl import envs
from pbtrl.build.rl import RLBuilder, env_spaces
from pbtrl.config.schema import Config


def describe_env(config: Config) -> str:
    """The env and its spaces in a few words, with what was changed about them, and what runs it."""
    assert config.env is not None
    env, shown = config.env, env_spaces(config)
    seen = "x".join(str(n) for n in shown.single_observation_space.shape or ())
    action = shown.single_action_space
    taken = f"{action.n} actions" if hasattr(action, "n") else f"{(action.shape or (0,))[0]} continuous actions"
    runs = env.protocol if env.is_atari else envs.describe_backend(env.id, env.backend, env.kwargs)
    return ", ".join([env.id, f"{seen} -> {taken}", *filter(None, [shown.remark]), runs])


def describe_slices(config: Config) -> str:
    """How long slices are, and which of the config's numbers were rounded up to whole blocks."""
    ready, budget = config.strategy.ready, config.budget.env_steps_per_member
    text = f"{config.slice_steps:,} {config.unit} each"
    if config.burn_in:
        text += f", no copies before {config.burn_in:,}"
    asked = {
        "budget.env_steps_per_member": budget,
        "ready.slice_steps": ready.slice_steps,
        "ready.burn_in": ready.burn_in,
    }
    rounded = [f"{k} {v:,} to {config.round_to_block(v):,}" for k, v in asked.items() if v and v % config.block]
    return f"{text}; in whole blocks of {config.block:,}: {', '.join(rounded)}" if rounded else text


def describe_agent(config: Config) -> str:
    """The agent and its size in a few words; in a mix, a line for each with the number of its members."""
    counts, kinds = config.population.mix or {}, config.kinds
    return "\n".join(f"{counts[name]} {name}: {_described(kinds[name])}" for name in counts) or _described(config)


def _described(config: Config) -> str:
    assert config.agent is not None
    from pbtrl.agents.networks import resolve_network

    agent = RLBuilder(config).agent
    parameters, kind = agent.net.size + agent.policy.free_size, resolve_network(config.agent, agent.image)
    core = "" if config.agent.core == "none" else f" with {config.agent.core}"
    blocks = f"blocks of {config.block_length} steps ({config.agent.unroll_mode})"
    return f"{config.agent.name}, {kind}{core} of {parameters:,} parameters, {blocks}"
