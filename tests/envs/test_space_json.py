"""Spaces as JSON."""

import json

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from pbtrl.envs.space_json import space_from_json, space_to_json


@pytest.mark.parametrize(
    "space",
    [
        Discrete(4, start=-1),
        MultiDiscrete([3, 2], start=[1, -5]),
        MultiDiscrete([[3, 2], [4, 1]], dtype=np.int32),
        Box(np.array([-np.inf, 0.0]), np.array([1.0, np.inf]), dtype=np.float64),
    ],
    ids=str,
)
def test_round_trip(space):
    again = space_from_json(json.loads(json.dumps(space_to_json(space))))
    assert again == space
    assert again.dtype == space.dtype


@pytest.mark.parametrize(
    "value",
    [
        {"type": "MultiDiscrete", "nvec": [], "start": [], "dtype": "int64"},
        {"type": "MultiDiscrete", "nvec": [0], "start": [0], "dtype": "int64"},
        {"type": "MultiDiscrete", "nvec": [2], "start": [0, 1], "dtype": "int64"},
        {"type": "MultiDiscrete", "nvec": 2, "start": 0, "dtype": "int64"},
        {"type": "MultiDiscrete", "nvec": [2]},
        {"type": "Text"},
    ],
)
def test_damaged_spaces_are_refused(value):
    with pytest.raises(ValueError, match="not a space"):
        space_from_json(value)


def test_other_spaces_have_no_form():
    with pytest.raises(TypeError, match="MultiBinary"):
        space_to_json(MultiBinary(3))
