"""Checks of one agent's settings, its hyperparameters and the acting mode; each mistake is one line."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from pbtrl.agents.settings import AGENTS, AgentSettings
from pbtrl.config.limits import describe_interval, is_within, largest_unroll
from pbtrl.config.wording import Path, dotted, listed, shown
from pbtrl.core.dimensions import Choice, IntLogUniform, IntUniform, LogUniform, OneMinusLogUniform, Uniform
from pbtrl.errors import ConfigProblem

if TYPE_CHECKING:
    from pbtrl.config.schema import Config
    from pbtrl.config.sections import Acting

Range = Uniform | LogUniform | OneMinusLogUniform | IntUniform | IntLogUniform


def check_agent(config: "Config", at: Path, searched: Mapping[str, Path]) -> Iterator[ConfigProblem]:
    """Yield mistakes in one agent's settings and hyperparameters.

    Args:
        config: of this agent alone.
        at: path of the agent's settings.
        searched: path of each searched hyperparameter.
    """
    agent = config.agent
    assert agent is not None
    if config.acting is not None:
        yield from _may_act(config.acting, agent, at)
    for f in fields(agent):
        if "low" not in f.metadata:
            continue
        allowed = Allowed(f.name, f.metadata["low"], f.metadata["high"], f.metadata.get("integer", False))
        dimension = config.hparams.get(f.name)
        if dimension is None:
            yield from _fixed(allowed, getattr(agent, f.name), (*at, f.name))
        elif isinstance(dimension, Choice):
            yield from _choice(allowed, dimension, searched[f.name])
        else:
            yield from _range(allowed, dimension, searched[f.name])
    yield from _block(config, agent, at, searched.get("unroll_length", ()))
    yield from _minibatches(config, agent, at, searched.get("minibatches", ()))


@dataclass(frozen=True)
class Allowed:
    """Values that a setting of an agent may have."""

    name: str
    low: float
    high: float
    whole: bool

    def check(self, value: float, path: Path) -> Iterator[ConfigProblem]:
        """Yield the mistake if a searched value is outside."""
        if not is_within(value, self.low, self.high):
            yield ConfigProblem(f"{self.name} must be {self}, not {value:g}", path)

    @override
    def __str__(self) -> str:
        return describe_interval(self.low, self.high)


def _fixed(allowed: Allowed, value: Any, at: Path) -> Iterator[ConfigProblem]:
    """Check a setting that is not searched: a number or a tuple of them."""
    numbers = [(n, (*at, place)) for place, n in enumerate(value)] if isinstance(value, tuple) else [(value, at)]
    for number, path in numbers:
        if not is_within(number, allowed.low, allowed.high):
            yield ConfigProblem(f"must be {allowed}, not {number:g}", path)


def _choice(allowed: Allowed, dimension: Choice, at: Path) -> Iterator[ConfigProblem]:
    """Check the values that a hyperparameter is chosen from."""
    types = int if allowed.whole else (int, float)
    for place, value in enumerate(dimension.values):
        path = (*at, "values", place)
        if isinstance(value, bool) or not isinstance(value, types):
            yield ConfigProblem(f"must be {'an integer' if allowed.whole else 'a number'}, not {shown(value)}", path)
        elif not is_within(value, allowed.low, allowed.high):
            yield ConfigProblem(f"{allowed.name} must be {allowed}, not {shown(value)}", path)


def _range(allowed: Allowed, dimension: Range, at: Path) -> Iterator[ConfigProblem]:
    """Check the prior and the bounds of a hyperparameter."""
    if allowed.whole and not isinstance(dimension, IntUniform | IntLogUniform):
        text = f"{allowed.name} is an integer: use int_uniform, int_log_uniform or choice"
        yield ConfigProblem(text, (*at, "prior"))
    yield from allowed.check(dimension.low, (*at, "low"))
    yield from allowed.check(dimension.high, (*at, "high"))
    if isinstance(dimension.bounds, tuple):
        for place, bound in enumerate(dimension.bounds):
            yield from allowed.check(bound, (*at, "bounds", place))


def _may_act(acting: "Acting", agent: AgentSettings, at: Path) -> Iterator[ConfigProblem]:
    """Check that an agent's algorithm supports the acting mode."""
    if acting.mode in agent.acting:
        return
    able = listed((name for name, kind in AGENTS.items() if acting.mode in kind.acting), "or")
    modes = listed((mode for mode in ("inline", "hogwild") if mode in agent.acting), "or")
    why = {
        "actors": "does not correct for the lag of actors' policies",
        "hogwild": agent.not_hogwild,
    }[acting.mode]
    yield ConfigProblem(f"{agent.name} {why}: use {able}, or mode {modes}", ("acting", "mode"), (*at, "name"))


def _block(config: "Config", agent: AgentSettings, at: Path, path: Path) -> Iterator[ConfigProblem]:
    """Check an agent's block length; `at` is the path of its settings, `path` of the unroll length."""
    searched = config.hparams.get("unroll_length")
    block: Path = (*at, "block_length")
    other: Path
    unbounded = not isinstance(searched, Choice | None) and searched.bounds == "none"
    if agent.block_length is None:
        if unbounded:
            yield ConfigProblem(f"without a bound needs {dotted(block)}", (*path, "bounds"))
        return
    if agent.block_length < 1:
        yield ConfigProblem(f"must be >= 1, not {agent.block_length}", block)
        return
    if searched is None:
        largest, other = agent.unroll_length, (*at, "unroll_length")
    elif isinstance(searched, Choice):
        largest, other = largest_unroll(agent, searched), (*path, "values")
    else:
        largest, other = int(searched.high if unbounded else searched.limits[1]), (*path, "high")
    if agent.block_length < largest:
        text = f"block_length {agent.block_length} is shorter than the largest unroll, {largest}"
        yield ConfigProblem(text, block, other)


def _minibatches(config: "Config", agent: AgentSettings, at: Path, path: Path) -> Iterator[ConfigProblem]:
    """Check an agent's number of minibatches; `at` is the path of its settings, `path` of that number if searched."""
    if config.env is None:
        return
    envs, searched = config.env.num_envs, config.hparams.get("minibatches")
    if not agent.shuffles:
        if not 1 <= agent.minibatches <= envs:
            text = f"must be between 1 and env.num_envs ({envs}), not {agent.minibatches}"
            yield ConfigProblem(text, (*at, "minibatches"))
        return
    time = 1 if agent.core == "lstm" else _block_unit(config, agent)
    several = agent.unroll_mode == "exact" and "unroll_length" in config.hparams
    units = f"the {envs} x {time} = {envs * time} steps of {'which all blocks are multiples' if several else 'a block'}"
    if time == 1:
        units = f"env.num_envs ({envs})" + (
            ", because an LSTM learns from complete unrolls" if agent.core == "lstm" else ""
        )
    if searched is not None and not isinstance(searched, Choice):
        yield ConfigProblem(f"minibatches must divide {units}: use choice", (*path, "prior"))
        return
    chosen: list[tuple[object, Path]] = [(agent.minibatches, (*at, "minibatches"))]
    if searched is not None:
        chosen = [(value, (*path, "values", place)) for place, value in enumerate(searched.values)]
    for value, where in chosen:
        if isinstance(value, int) and value >= 1 and envs * time % value:
            divisors = _divisors(envs * time)
            near = [max(d for d in divisors if d < value), *[d for d in divisors if d > value][:1]]
            text = f"must divide {units}, as {listed(map(str, near), 'and')} would, not {value}"
            yield ConfigProblem(text, where)


def _divisors(number: int) -> list[int]:
    """List the divisors in ascending order."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def _block_unit(config: "Config", agent: AgentSettings) -> int:
    """Greatest number of steps per env that divides every block of a run, whatever unroll length is searched."""
    searched = config.hparams.get("unroll_length")
    if agent.unroll_mode == "budget":
        return max(config.block_length, 1)
    if searched is None:
        return agent.unroll_length
    return math.gcd(*(v for v in searched.values if isinstance(v, int))) if isinstance(searched, Choice) else 1
