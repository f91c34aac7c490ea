"""A memory task with images: agents with a memory learn it; A3C without one does not in as many steps."""

import pytest

from tests.rl.test_probes_learn import Trained


@pytest.mark.parametrize(
    ("name", "remembers"),
    [
        ("unreal", True),
        pytest.param("feudal", True, marks=pytest.mark.slow),
        pytest.param("a3c", False, marks=pytest.mark.slow),
    ],
)
def test_glimpse_is_remembered(name, remembers):
    trained = Trained(name, "probe/Glimpse-v0", 150, time=12, learning_rate=1e-3, core_units=64, goal_units=64)
    mean = sum(trained.returns) / len(trained.returns)
    assert mean > 0.95 if remembers else mean < 0.7
