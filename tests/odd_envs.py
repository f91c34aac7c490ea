"""Small envs with one odd trait each, as `tests.odd_envs:make` with `kwargs: {name: ...}`; a name is a key of ENVS."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Text, Tuple

SEEN = Box(-1.0, 1.0, (3,), np.float32)
TAKEN = Discrete(2)

Value = Callable[["Odd"], Any]


class Odd(gymnasium.Env[Any, Any]):
    """Ten steps an episode, random observations, a reward for large actions; arguments replace parts of it.

    Attributes:
        lived: steps since its making.
    """

    def __init__(
        self, seen: Space[Any] = SEEN, taken: Space[Any] = TAKEN, *, look: Value | None = None,
        reward: Value | None = None, ends: tuple[Any, Any] = (False, True), close: Exception | None = None,
    ) -> None:  # fmt: skip
        self.observation_space, self.action_space = seen, taken
        self._look, self._reward, self._ends, self._close = look, reward, ends, close
        self._t = self.lived = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self._t = 0
        return self._looked(), {}

    def step(self, action: Any) -> Any:
        self._t, self.lived = self._t + 1, self.lived + 1
        paid = float(np.sum(np.asarray(action, np.float64)) > 0) if self._reward is None else self._reward(self)
        return self._looked(), paid, False, self._ends[self._t >= 10], {}

    def close(self) -> None:
        if self._close is not None:
            raise self._close

    def _looked(self) -> Any:
        return self.observation_space.sample() if self._look is None else self._look(self)


class Strict(Odd):
    """Asserts that every action is in its action space."""

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        return super().step(action)


class Calls(Odd):
    """Call a function with the env in place of a step."""

    def __init__(self, instead: Value, *, after: int = 0) -> None:
        super().__init__()
        self._instead, self._after = instead, after

    def step(self, action: Any) -> Any:
        return self._instead(self) if self.lived >= self._after else super().step(action)


class Spaceless(gymnasium.Env[Any, Any]):
    """Env without one of its spaces."""

    def __init__(self, **spaces: Any) -> None:
        for name, space in spaces.items():
            setattr(self, name, space)


class OldReset(Odd):
    """`reset` returns the observation alone, as in old gym."""

    def reset(self, **options: Any) -> Any:
        return super().reset(**options)[0]


class Ducktyped:
    """Object with the methods of an env that is not a `gymnasium.Env`."""

    observation_space, action_space = SEEN, TAKEN


def once(step: int, odd: Any, usual: Any) -> Value:
    """Value that is odd at one step of an env's life."""
    return lambda env: odd if env.lived == step else usual


def raising(error: BaseException) -> Value:
    def function(_: object) -> Any:
        raise error

    return function


def always(value: Any) -> Value:
    return lambda _: value


def box(*shape: int, dtype: Any = np.float32, high: float = 1.0) -> Box:
    return Box(0 if np.dtype(dtype).kind == "u" else -high, high, shape, dtype)


def seen(space: Space[Any], look: Any = None) -> Callable[[], Odd]:
    """Observations of a space, or the given ones in place of samples."""
    return lambda: Odd(space, look=look if callable(look) or look is None else always(look))


def taken(space: Space[Any]) -> Callable[[], Odd]:
    return lambda: Strict(taken=space)


def paid(value: Any) -> Callable[[], Odd]:
    return lambda: Odd(reward=value if callable(value) else always(value))


def _wants_argument(size: int) -> Odd:
    return Odd(box(size))


def _drawn_space() -> Odd:
    _drawn_space.size = getattr(_drawn_space, "size", 2) + 1  # type: ignore[attr-defined]
    return Odd(box(_drawn_space.size))  # type: ignore[attr-defined]


def _raises(error: BaseException) -> Callable[[], Odd]:
    def constructor() -> Odd:
        raise error

    return constructor


VECTOR = np.zeros(3, np.float32)

ENVS: dict[str, Callable[..., Any]] = {
    # observations: spaces
    "zero-d": seen(box()),
    "float64": seen(box(3, dtype=np.float64)),
    "huge float64 bounds": seen(Box(-1e300, 1e300, (3,), np.float64), np.zeros(3)),
    "integers": seen(Box(-9, 9, (3,), np.int32)),
    "memory": seen(box(128, dtype=np.uint8, high=255)),
    "gray": seen(box(20, 24, dtype=np.uint8, high=255)),
    "stacked": seen(box(2, 20, 24, 3, dtype=np.uint8, high=255)),
    "stacked last": seen(box(24, 20, 3, 2, dtype=np.uint8, high=255)),
    "board": seen(box(3, 3, dtype=np.uint8, high=2)),
    "small picture": seen(box(7, 7, 3, dtype=np.uint8, high=255)),
    "float picture": seen(box(24, 24, 3)),
    "empty": seen(box(0)),
    "discrete": seen(Discrete(5)),
    "discrete from -2": seen(Discrete(5, start=-2)),
    "huge discrete": seen(Discrete(300_000)),
    "dict": seen(Dict(a=Discrete(2))),
    "tuple": seen(Tuple((Discrete(2), Discrete(2)))),
    "multi-binary": seen(MultiBinary(4)),
    "multi-discrete": seen(MultiDiscrete([2, 3])),
    "text": seen(Text(5)),
    # observations: values
    "shows NaN": seen(SEEN, lambda env: VECTOR + (np.nan if env.lived == 15 else 0.0)),
    "shows NaN at once": seen(SEEN, VECTOR + np.nan),
    "shows infinity": seen(SEEN, lambda env: VECTOR + (np.inf if env.lived == 15 else 0.0)),
    "shows 1e300": seen(box(3, dtype=np.float64), lambda env: np.full(3, 1e300 if env.lived == 15 else 0.0)),
    "shows None": seen(SEEN, always(None)),
    "shows a dict": seen(SEEN, {"a": 1}),
    "shows a ragged list": seen(SEEN, [[1.0], [1.0, 2.0], 3.0]),
    "shows a list": seen(SEEN, [0.1, 0.2, 0.3]),
    "shows float64 as float32": seen(SEEN, np.zeros(3)),
    "shows another shape": seen(SEEN, np.zeros(4, np.float32)),
    "shows another shape later": seen(SEEN, lambda env: np.zeros(3 if env.lived < 15 else 4, np.float32)),
    "shows int64 as uint8": seen(box(3, dtype=np.uint8, high=255), np.array([1, 2, 3])),
    "shows floats as uint8": seen(box(3, dtype=np.uint8, high=255), np.array([0.1, 0.2, 0.3])),
    "shows int64 as int32": seen(Box(0, 9, (3,), np.int32), np.array([1, 2, 3])),
    "shows 300 as int8": seen(Box(0, 9, (3,), np.int8), lambda env: np.array([1, 2, 300 if env.lived > 15 else 3])),
    "shows -1 of Discrete(5)": seen(Discrete(5), -1),
    "shows 5 of Discrete(5)": seen(Discrete(5), lambda env: 5 if env.lived == 15 else 4),
    "shows a float of Discrete(5)": seen(Discrete(5), 2.5),
    # actions
    "act in float64": taken(Box(-0.1, 0.1, (2,), np.float64)),
    "act in float16": taken(Box(-0.1, 0.1, (2,), np.float16)),
    "act between bounds that float32 moves": taken(Box(np.array([0.1, -0.3]), np.array([0.3, -0.1]), dtype=np.float64)),
    "act without bounds": taken(Box(-np.inf, np.inf, (2,), np.float32)),
    "act with half a bound": taken(Box(np.array([0.0, -np.inf]), np.array([np.inf, 0.0]), dtype=np.float64)),
    "act in one number": taken(box()),
    "act in a matrix": taken(box(2, 2)),
    "act in integers": taken(Box(0, 5, (2,), np.int64)),
    "act in nothing": taken(box(0)),
    "act in a MultiDiscrete": taken(MultiDiscrete([2, 3])),
    "act in a grid from 1": taken(MultiDiscrete([[2, 3]], start=[[1, 1]], dtype=np.int32)),
    "act in a Dict": taken(Dict(a=Discrete(2))),
    "act from 3": taken(Discrete(2, start=3)),
    "act without a choice": taken(Discrete(1)),
    # rewards
    "pays an array of one": paid(np.array([1.0])),
    "pays an array of two": paid(np.array([1.0, 2.0])),
    "pays a zero-d array": paid(np.array(1.0)),
    "pays None": paid(always(None)),
    "pays None once": paid(once(15, None, 1.0)),
    "pays NaN once": paid(once(15, np.nan, 1.0)),
    "pays infinity once": paid(once(15, np.inf, 1.0)),
    "pays 1e300 once": paid(once(15, 1e300, 1.0)),
    "pays a string": paid("1.0"),
    "pays a complex number": paid(1 + 0j),
    "pays 10**30": paid(10**30),
    "pays integers": paid(1),
    "pays booleans": paid(True),
    "pays float32": paid(np.float32(0.5)),
    "pays sometimes integers": paid(lambda env: 1 if env.lived % 2 else 0.5),
    # flags
    "ends with numpy booleans": lambda: Odd(ends=(np.False_, np.True_)),
    "ends with integers": lambda: Odd(ends=(0, 1)),
    "ends with None": lambda: Odd(ends=(None, True)),
    "ends with strings": lambda: Odd(ends=("no", "yes")),
    "ends with an array": lambda: Odd(ends=(np.array([False]), np.array([True]))),
    # the interface
    "reset without info": OldReset,
    "reset to two numbers": lambda: OldReset(box(2)),
    "four values": lambda: Calls(always((VECTOR, 0.0, False, {}))),
    "four values later": lambda: Calls(always((VECTOR, 0.0, False, {})), after=15),
    "no step": lambda: Calls(always(None)),
    "no observation space": lambda: Spaceless(action_space=TAKEN),
    "no action space": lambda: Spaceless(observation_space=SEEN),
    "a space of another kind": lambda: Spaceless(observation_space=(3,), action_space=TAKEN),
    "spaces that differ": _drawn_space,
    "no env": Ducktyped,
    "nothing": lambda: None,
    "raises": _raises(RuntimeError("no\nlicense")),
    "exits": _raises(SystemExit(0)),
    "wants an argument": _wants_argument,
    "divides by zero": lambda: Calls(lambda _: 1 / 0),
    "divides by zero later": lambda: Calls(lambda _: 1 / 0, after=15),
    "exits in a step": lambda: Calls(raising(SystemExit(0)), after=15),
    "a broken pipe": lambda: Calls(raising(BrokenPipeError()), after=15),
    "a long story": lambda: Calls(raising(ValueError("no " * 1000)), after=15),
    # the end of life
    "close raises": lambda: Odd(close=RuntimeError("the simulator is gone already")),
    "close exits": lambda: Odd(close=SystemExit(0)),
    "hangs": lambda: Calls(lambda _: time.sleep(1000), after=15),
}


def make(name: str, given: int | None = None) -> Any:
    """Make the odd env of a name."""
    return ENVS[name]() if given is None else ENVS[name](given)
