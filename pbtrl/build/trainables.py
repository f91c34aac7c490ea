"""Trainables: look up the class that a config names, and check its keys and hyperparameters.

What a key may be follows from the annotations of the constructor, as for the settings of agents.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from dataclasses import field, make_dataclass, replace
from typing import Any, get_type_hints

import numpy as np
from pydantic import ConfigDict, TypeAdapter, with_config

from pbtrl.config import registry
from pbtrl.config.aliases import ALIASES
from pbtrl.config.pydantic_errors import find_problems
from pbtrl.config.schema import Config
from pbtrl.config.wording import shown, unknown
from pbtrl.core.dimensions import Choice, Dimension, IntLogUniform, IntUniform
from pbtrl.core.tensors import Tensors
from pbtrl.errors import ConfigProblem
from pbtrl.trainables.builder import Structure, TrainableBuilder, parameters


def trainable_builder(config: Config) -> TrainableBuilder:
    """Make the builder of the trainable that a config names.

    Raises:
        ConfigProblem: there is no such trainable, it cannot be imported, a key or hyperparameter is unknown, missing or
            out of range, its constructor raises, or its state is not arrays of numbers.
    """
    assert config.trainable is not None
    builder = _unchecked_builder(config)
    keys = _keys(builder.kind, dict(builder.structure_of(config.hparams)))
    if problem := next(_problems(config, builder.kind, keys, builder.kwargs), None):
        raise problem
    builder = replace(builder, kwargs=_converted(keys, builder.kwargs))
    try:
        state = builder.make(np.random.default_rng(0), _smallest(config, builder)).state_dict()
    except ConfigProblem:
        raise
    except Exception as error:  # the class is the user's own code
        raise ConfigProblem(f"cannot be made: {type(error).__name__}: {error}", ("trainable",)) from error
    if text := _unstorable(state):
        raise ConfigProblem(f"state_dict of {config.trainable.name}: {text}", ("trainable", "name"))
    return builder


def largest_state(config: Config) -> Tensors:
    """Return the state of a fresh model, the largest one if hyperparameters that shape it are searched.

    If its constructor refuses the largest values together, it is the smallest one.
    """
    builder = trainable_builder(config)
    largest = builder.structure_of({name: _largest(dimension) for name, dimension in config.hparams.items()})
    try:
        return builder.make(np.random.default_rng(0), largest).state_dict()
    except Exception:
        return builder.make(np.random.default_rng(0), _smallest(config, builder)).state_dict()


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
    assert config.trainable is not None
    trainable = config.trainable.name
    for problem in find_problems(keys, kwargs, ALIASES):
        if problem.message == "missing" and (name := problem.paths[0][-1]) in config.hparams:
            text = f"needs a default in {trainable}, whose constructor gets no searched value that is not structural"
            yield ConfigProblem(text, ("hparams", name), at_key=True)
            continue
        at = () if problem.message == "missing" else problem.paths[0]
        text = f"needs {problem.paths[0][-1]}" if problem.message == "missing" else problem.message
        yield ConfigProblem(text, ("trainable", *at), at_key=problem.at_key and bool(at))
    structural = getattr(cls, "structural", ())
    tunable = getattr(cls, "tunable", None)
    for name, dimension in config.hparams.items():
        path = ("hparams", name)
        known = [*(tunable or ()), *structural]
        if tunable is not None and name not in known:
            text = unknown(f"{trainable} has no such hyperparameter", name, known, ALIASES)
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
        if name in keys.__dataclass_fields__:
            yield from _range_problems(keys, kwargs, name, dimension)


def _range_problems(keys: Any, kwargs: Mapping[str, Any], name: str, dimension: Dimension) -> Iterator[ConfigProblem]:
    """Yield what is wrong with the values of a key that is searched."""

    def refusal(value: object) -> str:
        problems = find_problems(keys, {**kwargs, name: value}, {})
        return next((problem.message for problem in problems if problem.paths[0][:1] == (name,)), "")

    path = ("hparams", name)
    whole = refusal(0.5).startswith("must be an integer")
    if whole and not isinstance(dimension, Choice | IntUniform | IntLogUniform):
        text = f"{name} is an integer: use int_uniform, int_log_uniform or choice"
        yield ConfigProblem(text, (*path, "prior"))
        return
    for value in _extremes(dimension):
        text = f"must be an integer, not {shown(value)}" if whole and type(value) is not int else refusal(value)
        if not text:
            continue
        if isinstance(dimension, Choice) or dimension.bounds != "none" or dimension.low <= value <= dimension.high:
            yield ConfigProblem(text, path)
        else:
            allowed = text.removeprefix("must be ").partition(", not ")[0]
            yield ConfigProblem(f"none is wider than {name} allows ({allowed}): give [low, high]", (*path, "bounds"))


def _keys(cls: Any, searched: Collection[str]) -> Any:
    """Make a dataclass of the keys that a class takes from the config, for pydantic to check them against.

    Those that are `searched` may be missing.
    """
    prepare = getattr(cls, "prepare", None)
    result = parameters(cls, 1 if prepare is None else 2)
    hints = _hints(cls)
    if prepare is not None:
        result, hints = {**parameters(prepare, 1), **result}, {**_hints(prepare), **hints}
    fields: list[Any] = []
    for name, parameter in result.items():
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            optional = [field(default=None)] if name in searched or parameter.default is not parameter.empty else []
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


def _smallest(config: Config, builder: TrainableBuilder) -> Structure:
    """Return the first values of the hyperparameters that shape the model."""
    return builder.structure_of({name: _extremes(dimension)[0] for name, dimension in config.hparams.items()})


def _largest(dimension: Dimension) -> Any:
    """Return the largest value of a prior; of a choice that is not of numbers, the last one."""
    if not isinstance(dimension, Choice):
        return dimension.high
    numbers = [value for value in dimension.values if isinstance(value, int | float)]
    return max(numbers) if len(numbers) == len(dimension.values) else dimension.values[-1]


def _unstorable(state: object) -> str:
    """Return why a state is not a dictionary of numeric arrays; empty if it is."""
    if not isinstance(state, Mapping):
        return f"must be a dictionary of numpy arrays, not {type(state).__name__}"
    for name, value in state.items():
        if not isinstance(value, np.ndarray):
            return f"{name} must be a numpy array, not {type(value).__name__}"
        if value.dtype.kind not in "biuf":
            return f"{name} must be an array of numbers or booleans, not of {value.dtype.name}"
    return ""
