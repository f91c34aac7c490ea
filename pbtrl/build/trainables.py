"""Trainables: look up the class that a config names, and check its keys and hyperparameters.

What a key may be follows from the annotations of the constructor, as for the settings of agents.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import field, make_dataclass, replace
from typing import Any, get_type_hints

import numpy as np
from pydantic import ConfigDict, TypeAdapter, with_config

from pbtrl.config import registry
from pbtrl.config.aliases import ALIASES
from pbtrl.config.pydantic_errors import find_problems
from pbtrl.config.schema import Config
from pbtrl.config.wording import unknown
from pbtrl.core.dimensions import Choice, Dimension, IntLogUniform, IntUniform
from pbtrl.errors import ConfigProblem
from pbtrl.trainables.builder import TrainableBuilder, parameters


def trainable_builder(config: Config) -> TrainableBuilder:
    """Make the builder of the trainable that a config names.

    Raises:
        ConfigProblem: there is no such trainable, it cannot be imported, a key or hyperparameter is unknown, missing or
            out of range, or its constructor raises.
    """
    builder = _unchecked_builder(config)
    keys = _keys(builder.kind)
    if problem := next(_problems(config, builder.kind, keys, builder.kwargs), None):
        raise problem
    builder = replace(builder, kwargs=_converted(keys, builder.kwargs))
    try:
        builder.make(np.random.default_rng(0))
    except ConfigProblem:
        raise
    except Exception as error:  # the class is the user's own code
        raise ConfigProblem(f"cannot be made: {type(error).__name__}: {error}", ("trainable",)) from error
    return builder


def fitness_name(config: Config) -> str:
    """Return the name of the fitness in tables and plots.

    Raises:
        ConfigProblem: there is no such trainable, or it cannot be imported.
    """
    return config.fitness.metric_name if config.env is not None else _unchecked_builder(config).metric


def _unchecked_builder(config: Config) -> TrainableBuilder:
    assert config.trainable is not None
    name = config.trainable.name
    try:
        cls = registry.load("trainable", name)
    except KeyError:
        text = unknown(f"unknown trainable {name!r}", name, registry.known("trainable"), {})
        raise ConfigProblem(text, ("trainable", "name")) from None
    except ImportError as error:
        raise ConfigProblem(str(error), ("trainable", "name")) from error
    return TrainableBuilder(cls, config.trainable.kwargs, config.curve_interval, config.seed)


def _problems(config: Config, cls: Any, keys: Any, kwargs: Mapping[str, Any]) -> Iterator[ConfigProblem]:
    """Yield what is wrong with the keys of the config's `trainable` section, and with its searched hyperparameters."""
    for problem in find_problems(keys, kwargs, ALIASES):
        at = () if problem.message == "missing" else problem.paths[0]
        text = f"needs {problem.paths[0][-1]}" if problem.message == "missing" else problem.message
        yield ConfigProblem(text, ("trainable", *at), at_key=problem.at_key and bool(at))
    structural = getattr(cls, "structural", ())
    tunable = getattr(cls, "tunable", None)
    for name, dimension in config.hparams.items():
        path = ("hparams", name)
        known = [*(tunable or ()), *structural]
        if tunable is not None and name not in known:
            text = unknown(
                f"{config.trainable and config.trainable.name} has no such hyperparameter", name, known, ALIASES
            )
            yield ConfigProblem(text, path, at_key=True)
            continue
        if name in kwargs:
            text = "both fixed under trainable and searched under hparams: remove one"
            yield ConfigProblem(text, ("trainable", name), path, at_key=True)
        if name in structural and (config.strategy.copies or config.strategy.explores):
            text = (
                f"shapes the model, so weights cannot be copied: {config.strategy.name} needs it fixed under trainable"
            )
            yield ConfigProblem(text, path, at_key=True)
        for value in _extremes(dimension) if name in keys.__dataclass_fields__ else ():
            for problem in find_problems(keys, {**kwargs, name: value}, {}):
                if problem.paths[0][:1] == (name,):
                    yield ConfigProblem(problem.message, path)


def _keys(cls: Any) -> Any:
    """Make a dataclass of the keys that a class takes from the config, for pydantic to check them against."""
    prepare = getattr(cls, "prepare", None)
    result = parameters(cls, 1 if prepare is None else 2)
    hints = _hints(cls)
    if prepare is not None:
        result, hints = {**parameters(prepare, 1), **result}, {**_hints(prepare), **hints}
    fields: list[Any] = []
    for name, parameter in result.items():
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            optional = [] if parameter.default is parameter.empty else [field(default=None)]
            fields.append((name, hints.get(name, Any), *optional))
    extra: Any = "allow" if any(p.kind == p.VAR_KEYWORD for p in result.values()) else "forbid"
    keys = make_dataclass("Keys", fields, kw_only=True)
    with_config(ConfigDict(extra=extra, allow_inf_nan=False, arbitrary_types_allowed=True))(keys)
    return keys


def _converted(keys: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return valid keys with their numbers as they are annotated: 1 as a float, 2.0 as an integer."""
    checked, known = TypeAdapter(keys).validate_python(dict(kwargs)), keys.__dataclass_fields__
    numbers = {name for name, value in kwargs.items() if name in known and type(value) in (int, float)}
    return {name: getattr(checked, name) if name in numbers else value for name, value in kwargs.items()}


def _hints(function: Any) -> dict[str, Any]:
    constructor = function.__init__ if inspect.isclass(function) else function
    try:
        return get_type_hints(constructor, include_extras=True)
    except Exception:  # the annotations are the user's own; without them, keys are not checked
        return {}


def _extremes(dimension: Dimension) -> tuple[Any, ...]:
    """Return values that show whether a dimension's are allowed; a neighbor of an end shows what no multiple is."""
    if isinstance(dimension, Choice):
        return dimension.values
    least, most = dimension.limits
    return (least, least + 1, most) if isinstance(dimension, IntUniform | IntLogUniform) else (least, most)
