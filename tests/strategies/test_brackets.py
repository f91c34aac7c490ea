"""Rungs and brackets against the numbers of the Hyperband paper and its algorithm, written down literally."""

import math

import pytest

from pbtrl.strategies.brackets import Bracket, halving, hyperband, rung_steps


def resources(bracket: Bracket) -> int:
    """Steps of a bracket as the paper counts them: every rung trains its trials from fresh weights."""
    return sum(n * r for n, r in zip(bracket.sizes, bracket.rungs, strict=True))


def literal_hyperband(most: int, eta: int) -> list[list[tuple[int, float]]]:
    """Algorithm 1 of Li et al. 2018 with r = 1: (n_i, r_i) of every bracket."""
    s_max = math.floor(math.log(most) / math.log(eta) + 1e-9)
    budget = (s_max + 1) * most
    brackets = []
    for s in range(s_max, -1, -1):
        n = math.ceil(budget / most * eta**s / (s + 1))
        r = most * eta**-s
        brackets.append([(math.floor(n * eta**-i + 1e-9), r * eta**i) for i in range(s + 1)])
    return brackets


def test_hyperband_has_the_papers_brackets() -> None:
    rungs = rung_steps(81, 1, 3)
    assert rungs == (1, 3, 9, 27, 81)
    brackets = hyperband(rungs, 3)
    assert [b.sizes[0] for b in brackets] == [81, 34, 15, 8, 5]
    assert [resources(b) for b in brackets] == [405, 363, 351, 378, 405]
    assert [b.sizes[0] for b in hyperband(rungs, 3, "table")] == [81, 27, 9, 6, 5]


@pytest.mark.parametrize(("most", "eta"), [(81, 3), (256, 4), (16, 2), (1000, 10), (2, 2)])
def test_hyperband_equals_the_literal_algorithm(most: int, eta: int) -> None:
    brackets = [list(zip(b.sizes, b.rungs, strict=True)) for b in hyperband(rung_steps(most, 1, eta), eta)]
    assert brackets == literal_hyperband(most, eta)


def test_promoted_trial_pays_only_the_rest() -> None:
    bracket = halving(81, (1, 3, 9, 27, 81), 3)
    assert bracket.sizes == (81, 27, 9, 3, 1)
    assert bracket.steps == 81 * 1 + 27 * 2 + 9 * 6 + 3 * 18 + 1 * 54


def test_at_least_one_trial_goes_on() -> None:
    assert halving(10, (1, 4, 16, 64), 4).sizes == (10, 2, 1, 1)


@pytest.mark.parametrize(
    ("horizon", "lowest", "eta", "block", "expected"),
    [
        (81, 1, 3, 1, (1, 3, 9, 27, 81)),
        (81, 2, 3, 1, (3, 9, 27, 81)),
        (80, 1, 3, 1, (3, 9, 27, 80)),
        (243, 1, 3, 1, (1, 3, 9, 27, 81, 243)),
        (960, 12, 4, 12, (24, 60, 240, 960)),
        (3, 2, 2, 1, (3,)),
    ],
)
def test_rungs(horizon: int, lowest: int, eta: int, block: int, expected: tuple[int, ...]) -> None:
    assert rung_steps(horizon, lowest, eta, block) == expected
