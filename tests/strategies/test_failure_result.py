"""Statistics of results: equal ones, failures, and numbers near the end of the range."""

import pytest

from pbtrl.strategies.results import failure_result


@pytest.mark.parametrize(
    ("results", "failure"),
    [([], 0.0), ([0.9], 0.0), ([0.0], -1.0), ([-2.0], -4.0), ([1.0, 3.0], 0.0), ([-1e308, 1e308], -1e308)],
)
def test_failure_is_below_the_worst_result(results: list[float], failure: float) -> None:
    assert failure_result(results) == pytest.approx(failure)
