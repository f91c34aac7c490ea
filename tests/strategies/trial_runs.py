"""Whole runs of searches over trials with a fake executor, and slices of their trials written by hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pbtrl.core.messages import Assignment, Report
from pbtrl.core.population import FitnessRule, Population
from pbtrl.storage.journal import Journal
from pbtrl.strategies.trials import TrialSearch
from pbtrl.testing.fakes import LAST, FakeExecutor, died, trained
from pbtrl.testing.strategies import steady
from pbtrl.training.controller import Controller
from tests.fakes import answer, decision


def run(
    strategy: TrialSearch, folder: Path, script: Callable[[Assignment, int], Any] = steady, *, size: int = 8,
    order: int | None = None, seed: int = 3, rule: FitnessRule = LAST,
) -> Population:  # fmt: skip
    """Run a strategy with reports in a random order; returns the population at the end."""
    folder.mkdir(exist_ok=True)
    population, journal = Population(size, seed, rule), Journal(folder / f"{order}-{seed}-{size}.jsonl")
    executor = FakeExecutor(script, None if order is None else np.random.default_rng(order))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        assert Controller(population, strategy, executor, journal).run() == "budget"
    journal.close()
    return population


def slices(population: Population, member: str, *results: tuple[int, Any]) -> None:
    """Record slices of a member: the step that each ends at, and its fitness, None, "diverged" or "given up"."""
    for stop, result in results:
        m = population.members[member]
        a = Assignment(f"{member}/{m.generation + 1:06d}", member, m.snapshot, m.step, stop, {"lr": 1e-3}, 1)
        population.record(decision(a))
        if result == "given up":
            population.record(answer(died(a)))
            continue
        report: Report = trained(a) if result in (None, "diverged") else trained(a, result)
        population.record(answer(replace(report, diverged=result == "diverged")))
