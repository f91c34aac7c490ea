"""Checks between settings of a config that are valid one by one; each mistake is one line."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pbtrl.config.agent_checks import check_agent
from pbtrl.config.code_names import code_names
from pbtrl.config.wording import Path, unknown
from pbtrl.errors import ConfigProblem

if TYPE_CHECKING:
    from pbtrl.config.schema import Config
    from pbtrl.config.sections import Acting


def check_config(config: "Config") -> Iterator[ConfigProblem]:
    """Yield mistakes between settings that are valid one by one."""
    population, budget, fitness, strategy = config.population, config.budget, config.fitness, config.strategy
    if population.reference_members > population.size:
        yield ConfigProblem(
            f"reference_members {population.reference_members} is more than size {population.size}",
            ("population", "reference_members"),
            ("population", "size"),
        )
    if budget.env_steps_per_member is None and budget.total_steps is None:
        yield ConfigProblem("needs env_steps_per_member or total_steps", ("budget",))
    elif budget.env_steps_per_member is None and strategy.runs_trials:
        text = f"needs env_steps_per_member, the budget of one trial of {strategy.name}"
        yield ConfigProblem(text, ("budget",))
    else:
        yield from strategy.validate(config)
    if fitness.min_episodes > fitness.window_episodes:
        yield ConfigProblem(
            f"min_episodes {fitness.min_episodes} is more than window_episodes {fitness.window_episodes}",
            ("fitness", "min_episodes"),
            ("fitness", "window_episodes"),
        )
    if config.trainable is None:
        yield from _mix(config)
    if config.acting is not None:
        yield from _acting(config.acting, config.execution.backend)
    for _, path, code in code_names(config.to_dict()):
        if code.startswith("__main__:"):
            text = "worker processes do not import the main module: put the function into a module of its own"
            yield ConfigProblem(text, path)
    for name, agent_config in config.per_agent_configs.items():
        at: Path = ("agent",) if name is None else ("agents", name)
        own = config.agents[name].hparams if config.agents is not None and name is not None else {}
        searched = {h: ((*at, "hparams", h) if h in own else ("hparams", h)) for h in agent_config.hparams}
        yield from check_agent(agent_config, at, searched)


def _acting(acting: "Acting", backend: str) -> Iterator[ConfigProblem]:
    if acting.mode == "inline" and acting.processes > 1:
        text = "inline has no processes of its own: set mode to actors or hogwild"
        yield ConfigProblem(text, ("acting", "processes"))
    if acting.replay and acting.mode != "actors":
        text = f"only mode actors can replay, not {acting.mode}"
        yield ConfigProblem(text, ("acting", "replay"), ("acting", "mode"))
    if acting.placement == "spread" and acting.mode != "actors":
        text = f"only actors can be spread over nodes, and mode is {acting.mode}: set it to actors"
        yield ConfigProblem(text, ("acting", "placement"), ("acting", "mode"))
    elif acting.placement == "spread" and backend != "ray":
        text = f"needs execution.backend: ray, whose nodes the actors are spread over, not {backend}"
        yield ConfigProblem(text, ("acting", "placement"), ("execution", "backend"))


def _mix(config: "Config") -> Iterator[ConfigProblem]:
    population, agents = config.population, config.agents
    path: Path = ("population", "mix")
    if population.mix is None:
        if agents is not None:
            text = "needs population.mix, which says how many members are each, as in `mix: {impala: 2, vmpo: 2}`"
            yield ConfigProblem(text, ("agents",), path, at_key=True)
        return
    total = sum(population.mix.values())
    if population.size != total:
        text = f"must be {total}, what mix adds up to, or left out, not {population.size}"
        yield ConfigProblem(text, ("population", "size"), path)
    if agents is None:
        text = "counts entries of `agents`, which is missing, as in `agents: {impala: {}, vmpo: {}}`"
        yield ConfigProblem(text, path, ("agents",), at_key=True)
        return
    for name in population.mix.keys() - agents.keys():
        text = unknown("no such entry of agents", name, agents, {})
        yield ConfigProblem(text, (*path, name), ("agents", name), at_key=True)
    for name in agents.keys() - population.mix.keys():
        text = "no member is one: count it in population.mix, or remove it"
        yield ConfigProblem(text, ("agents", name), (*path, name), at_key=True)
