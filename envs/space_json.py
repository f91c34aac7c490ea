"""Observation and action spaces as JSON, so that a policy can be used without its env being installed."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete, Space
from numpy.typing import NDArray


def space_to_json(space: Space[Any]) -> dict[str, Any]:
    """Convert a Box, Discrete or MultiDiscrete to a JSON object; bounds that are all equal become a single number.

    Raises:
        TypeError: the space is of another type, which no agent supports.
    """
    if isinstance(space, Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, MultiDiscrete):
        return {
            "type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist(),
            "dtype": str(space.dtype),
        }  # fmt: skip
    if isinstance(space, Box):
        bounds = {"low": _bound(space.low), "high": _bound(space.high)}
        return {"type": "Box", **bounds, "shape": list(space.shape), "dtype": str(space.dtype)}
    raise TypeError(f"a {type(space).__name__} space has no JSON form")


def space_from_json(value: dict[str, Any]) -> Space[Any]:
    """Convert the output of `space_to_json` back to a space.

    Raises:
        ValueError: the value does not describe a space.
    """
    try:
        if value["type"] == "Discrete":
            return Discrete(int(value["n"]), start=int(value["start"]))
        if value["type"] == "MultiDiscrete":
            nvec, first = (np.asarray(value[name], np.int64) for name in ("nvec", "start"))
            if nvec.size == 0 or nvec.min() < 1 or nvec.shape != first.shape or first.ndim == 0:
                raise ValueError(f"not a space: {value!r}")
            return MultiDiscrete(nvec, dtype=np.dtype(value["dtype"]).type, start=first)
        if value["type"] == "Box":
            shape, dtype = tuple(int(n) for n in value["shape"]), np.dtype(value["dtype"])
            low, high = (np.broadcast_to(np.asarray(_numbers(value[end])), shape) for end in ("low", "high"))
            return Box(low.astype(dtype), high.astype(dtype), shape, dtype.type)
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"not a space: {error}") from error
    raise ValueError(f"not a space: {value!r}")


def _bound(bound: NDArray[Any]) -> Any:
    flat = bound.astype(object).ravel()
    numbers = [float(x) if isinstance(x, float) or "float" in type(x).__name__ else int(x) for x in flat]
    encoded = [{float("inf"): "inf", float("-inf"): "-inf"}.get(x, x) for x in numbers]
    if encoded and all(x == encoded[0] for x in encoded):
        return encoded[0]
    return np.array(encoded, dtype=object).reshape(bound.shape).tolist()


def _numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) else value
