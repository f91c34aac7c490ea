"""Short descriptions of a config's env, slices and agents."""

from __future__ import annotations

from gymnasium.spaces import MultiDiscrete

from pbtrl import envs
from pbtrl.build.rl import RLBuilder, env_spaces
from pbtrl.config.schema import Config


def describe_env(config: Config) -> str:
    """Describe the env, its spaces as agents see them, and its simulator (for Atari, the protocol)."""
    assert config.env is not None
    env, spaces = config.env, env_spaces(config)
    observation = "x".join(str(n) for n in spaces.single_observation_space.shape or ())
    action = spaces.single_action_space
    if isinstance(action, MultiDiscrete):
        actions = f"{' x '.join(map(str, action.nvec))} actions"
    else:
        actions = f"{action.n} actions" if hasattr(action, "n") else f"{(action.shape or (0,))[0]} continuous actions"
    simulator = env.protocol if env.is_atari else envs.describe_backend(env.id, env.backend, env.kwargs)
    return ", ".join([env.described, f"{observation} -> {actions}", *filter(None, [spaces.remark]), simulator])


def describe_slices(config: Config) -> str:
    """Describe the length of slices, and the numbers of the config that were rounded up to whole blocks."""
    ready, budget = config.strategy.ready, config.budget.env_steps_per_member
    length = f"{config.slice_steps:,} {config.unit}"
    text = f"at most {length}" if config.strategy.runs_trials else f"{length} each"
    if config.burn_in and config.strategy.copies:
        text += f", no copies before {config.burn_in:,}"
    configured = {
        "budget.env_steps_per_member": budget,
        "ready.slice_steps": ready.slice_steps,
        "ready.burn_in": ready.burn_in,
    }
    rounded = [f"{k} {v:,} to {config.round_to_block(v):,}" for k, v in configured.items() if v and v % config.block]
    return f"{text}; in whole blocks of {config.block:,}: {', '.join(rounded)}" if rounded else text


def describe_agent(config: Config) -> str:
    """Describe the agent and its size; in a mix, one line per agent with the number of its members."""
    counts, configs = config.population.mix or {}, config.per_agent_configs
    lines = [f"{counts[name]} {name}: {_describe_one(configs[name])}" for name in counts]
    return "\n".join(lines) or _describe_one(config)


def _describe_one(config: Config) -> str:
    assert config.agent is not None
    from pbtrl.agents.networks import resolve_network

    agent = RLBuilder(config).agent
    parameters, network = agent.net.size + agent.policy.free_size, resolve_network(config.agent, agent.image)
    core = "" if config.agent.core == "none" else f" with {config.agent.core}"
    blocks = f"blocks of {config.block_length} steps ({config.agent.unroll_mode})"
    return f"{config.agent.name}, {network}{core} of {parameters:,} parameters, {blocks}"
