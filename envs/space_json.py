"""Observation and action spaces as JSON, so that a policy can be used where its env is not installed."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete, Space
from numpy.typing import NDArray


def space_to_json(space: Space[Any]) -> dict[str, Any]:
    """A Box or Discrete space as a JSON object; bounds that are all equal are one number.

    Raises:
        TypeError: a space of another kind, which no agent can read or act in.
    """
    if isinstance(space, Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, Box):
        bounds = {"low": _bound(space.low), "high": _bound(space.high)}
        return {"type": "Box", **bounds, "shape": list(space.shape), "dtype": str(space.dtype)}
    raise TypeError(f"a {type(space).__name__} space has no JSON form")


def space_from_json(value: dict[str, Any]) -> Space[Any]:
    """The space that `space_to_json` wrote.

    Raises:
        ValueError: something else.
    """
    try:
        if value["type"] == "Discrete":
            return Discrete(int(value["n"]), start=int(value["start"]))
        if value["type"] == "Box":
            shape, dtype = tuple(int(n) for n in value["shape"]), np.dtype(value["dtype"])
            low, high = (np.broadcast_to(np.asarray(_numbers(value[end])), shape) for end in ("low", "high"))
            return Box(low.astype(dtype), high.astype(dtype), shape, dtype.type)
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"no space: {error}") from error
    raise ValueError(f"no space: {value!r}")


def _bound(bound: NDArray[Any]) -> Any:
    flat = bound.astype(object).ravel()
    texts = [float(x) if isinstance(x, float) or "float" in type(x).__name__ else int(x) for x in flat]
    named = [{float("inf"): "inf", float("-inf"): "-inf"}.get(x, x) for x in texts]
    if named and all(x == named[0] for x in named):
        return named[0]
    return np.array(named, dtype=object).reshape(bound.shape).tolist()


def _numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) else value
