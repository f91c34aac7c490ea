"""Checks of a config as it is written, before defaults are filled in; each mistake is one line."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from pbtrl.agents.settings import AGENTS, AgentSettings, live_hyperparameters
from pbtrl.config.aliases import ALIASES
from pbtrl.config.sections import RAY_CLIENT, RETURN
from pbtrl.config.wording import Path, dotted, listed, shown, unknown
from pbtrl.config.yaml_source import section
from pbtrl.core.dimensions import AGENT
from pbtrl.errors import ConfigProblem


def check_raw(raw: dict[str, Any]) -> Iterator[ConfigProblem]:
    """Yield mistakes that only the raw tree shows, before defaults are filled in."""
    yield from _cluster(section(raw, "execution"))
    if raw.get("trainable") is not None:
        for key in ("env", "agent", "agents", "acting"):
            if raw.get(key) is not None:
                yield ConfigProblem("not used with `trainable`: remove one of the two", (key,), at_key=True)
        if section(raw, "population").get("mix") is not None:
            yield ConfigProblem("not used with `trainable`: remove one of the two", ("population", "mix"), at_key=True)
        if section(raw, "fitness").get("metric", RETURN) != RETURN:
            yield ConfigProblem("not used with `trainable`, which has its own", ("fitness", "metric"), at_key=True)
        if AGENT in section(raw, "hparams"):
            yield ConfigProblem("is reserved; choose another hyperparameter name", ("hparams", AGENT), at_key=True)
        return
    if raw.get("env") is None:
        yield ConfigProblem("missing; say which env, as in `env: {id: CartPole-v1}`", ("env",))
    shared: dict[str, Path] = {name: ("hparams", name) for name in section(raw, "hparams")}
    if raw.get("agents") is not None:
        if raw.get("init_from") is not None:
            yield ConfigProblem("not used with `agents`: a snapshot is of one agent", ("init_from",), at_key=True)
        yield from _entries(raw, shared)
        return
    agent = {} if raw.get("agent") is None else raw["agent"]
    kind = AGENTS.get(str(agent.get("name", "impala"))) if isinstance(agent, dict) else None
    if kind is not None:
        yield from _fixed(kind, agent, ("agent",), shared)
        yield from _searched(kind, shared)


def _cluster(execution: Mapping[str, Any]) -> Iterator[ConfigProblem]:
    """Check the settings of a Ray cluster."""
    if str(execution.get("address")).startswith("ray://"):
        yield ConfigProblem(RAY_CLIENT, ("execution", "address"))
    for name, setting in (("CPU", "cores_per_worker"), ("GPU", "gpus_per_worker")):
        if name in section(execution, "resources"):
            yield ConfigProblem(f"is set by execution.{setting}", ("execution", "resources", name), at_key=True)


def _entries(raw: dict[str, Any], shared: Mapping[str, Path]) -> Iterator[ConfigProblem]:
    """Check the entries of `agents`: fixed settings, their own hyperparameters, and the `shared` ones of the run."""
    if raw.get("agent") is not None:
        yield ConfigProblem("not used with `agents`: remove one of the two", ("agent",), at_key=True)
    kinds: dict[str, type[AgentSettings]] = {}
    for name, written in section(raw, "agents").items():
        entry = {} if written is None else written
        kind = AGENTS.get(str(entry.get("name", name))) if isinstance(entry, dict) else None
        if kind is None:
            continue
        kinds[name] = kind
        at: Path = ("agents", name)
        own: dict[str, Path] = {h: (*at, "hparams", h) for h in section(entry, "hparams")}
        yield from _fixed(kind, entry, at, {**shared, **own})
        yield from _searched(kind, own)
        for twice in own.keys() & shared.keys():
            text = f"searched both for all agents and for {name} alone: remove one"
            yield ConfigProblem(text, own[twice], shared[twice], at_key=True)
    yield from _searched_by_all(kinds, shared)


def _fixed(
    kind: type[AgentSettings], agent: Mapping[str, Any], at: Path, searched: Mapping[str, Path]
) -> Iterator[ConfigProblem]:  # fmt: skip
    live = live_hyperparameters(kind)
    for name, value in agent.items():
        if name in live and isinstance(value, bool):
            yield ConfigProblem(f"must be a number, not {shown(value)}", (*at, name))
        if name in live and name in searched:
            text = f"both fixed under {dotted(at)} and searched under {dotted(searched[name][:-1])}: remove one"
            yield ConfigProblem(text, (*at, name), searched[name], at_key=True)


def _searched(kind: type[AgentSettings], searched: Mapping[str, Path]) -> Iterator[ConfigProblem]:
    live = live_hyperparameters(kind)
    for name, path in searched.items():
        if name in {f.name for f in fields(kind)} - live.keys():
            yield ConfigProblem(f"fixed for a run. What can be searched: {', '.join(live)}", path, at_key=True)
        elif name not in live:
            text = unknown(f"{kind.name} has no such hyperparameter", name, live, ALIASES)
            yield ConfigProblem(text, path, at_key=True)


def _searched_by_all(kinds: Mapping[str, type[AgentSettings]], shared: Mapping[str, Path]) -> Iterator[ConfigProblem]:
    """Check that every agent of the mix has the hyperparameters that are searched for all."""
    live = {name: live_hyperparameters(kind) for name, kind in kinds.items()}
    common = [h for h in next(iter(live.values()), ()) if all(h in has for has in live.values())]
    for h, path in shared.items():
        lacking = [name for name, has in live.items() if h not in has]
        if not lacking:
            continue
        if having := [f"agents.{name}.hparams" for name in live if name not in lacking]:
            text = f"{listed(lacking, 'and')} {'has' if len(lacking) == 1 else 'have'} no such hyperparameter: "
            text += f"search it under {listed(having, 'and')}"
        elif any(h in {f.name for f in fields(kind)} for kind in kinds.values()):
            text = f"fixed for a run. What can be searched: {', '.join(common)}"
        else:
            text = unknown("no agent of the mix has such a hyperparameter", h, common, ALIASES)
        yield ConfigProblem(text, path, at_key=True)
