"""Trainables: look up the class that a config names, and make it with the keys of the config."""

from __future__ import annotations

import inspect

import numpy as np

from pbtrl.config.schema import Config
from pbtrl.config.wording import unknown
from pbtrl.core import registry
from pbtrl.errors import ConfigProblem
from pbtrl.trainables.sequential import TrainableBuilder


def trainable_builder(config: Config) -> TrainableBuilder:
    """Make the builder of the trainable that a config names.

    Raises:
        ConfigProblem: there is no such trainable, it cannot be imported, a key is unknown or missing, or its
            constructor raises.
    """
    assert config.trainable is not None
    name, kwargs = config.trainable.name, config.trainable.kwargs
    try:
        cls = registry.load("trainable", name)
    except KeyError:
        text = unknown(f"unknown trainable {name!r}", name, registry.known("trainable"), {})
        raise ConfigProblem(text, ("trainable", "name")) from None
    except ImportError as error:
        raise ConfigProblem(str(error), ("trainable", "name")) from error
    parameters = list(inspect.signature(cls).parameters.values())[1:]
    keys = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if not any(p.kind == p.VAR_KEYWORD for p in parameters):
        for key in kwargs:
            if key not in keys:
                raise ConfigProblem(unknown("unknown key", key, keys, {}), ("trainable", key), at_key=True)
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.name in keys and parameter.name not in kwargs:
            raise ConfigProblem(f"needs {parameter.name}", ("trainable",))
    builder = TrainableBuilder(cls, kwargs, config.curve_interval)
    try:
        builder.make(np.random.default_rng(0))
    except Exception as error:  # the class is the user's own code
        raise ConfigProblem(f"cannot be made: {type(error).__name__}: {error}", ("trainable",)) from error
    return builder
