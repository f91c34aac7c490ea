"""Final choice of the best member: candidates, seeds and the reported score."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pbtrl.build import evaluators, rl
from pbtrl.config.load import config_from_dict, with_setting
from pbtrl.core.scores import EvaluationEpisodes
from pbtrl.core.tensors import Tensors
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.snapshot_store import SnapshotStore
from pbtrl.training import final_choice, scoring
from tests.fakes import after_one_slice, assign, decision
from tests.rl.test_evaluation import fresh

pytestmark = pytest.mark.usefixtures("quick_disk")

CONFIG = config_from_dict(
    {
        "env": {"id": "probe/Bandit-v0"},
        "agent": {"hidden": [4], "observations": "raw"},
        "budget": {"env_steps_per_member": 100},
        "final": {"candidates": 3, "selection_episodes": 4, "episodes": 5},
        "seed": 7,
    }
)
FITNESS = (0.0, 4.0, 5.0, 3.0)


@dataclass
class Evaluator:
    """Plays for real, and replaces a snapshot's returns by its `quality` plus noise of the seed.

    Attributes:
        calls: how it was called: the qualities of the rows, and the options.
        played: what each call answered.
        noise: standard deviation of the returns.
    """

    noise: float = 0.1
    calls: list[tuple[list[float], dict[str, Any]]] = field(default_factory=list)
    played: list[list[EvaluationEpisodes]] = field(default_factory=list)

    def __call__(
        self, rows: Sequence[Tensors], agents: Sequence[str | None], **options: Any
    ) -> list[EvaluationEpisodes]:
        qualities = [float(row["params"][0]) for row in rows]
        self.calls.append((qualities, options))
        rng, count = np.random.default_rng(options["seed"]), options["episodes"]
        self.played.append(
            [
                replace(
                    one,
                    returns=(quality + self.noise * rng.standard_normal(count)).tolist(),
                    lengths=list(range(1, count + 1)),
                )
                for quality, one in zip(qualities, REAL(CONFIG)(rows, agents, **options), strict=True)
            ]
        )
        return self.played[-1]


REAL = evaluators.make_evaluator


@pytest.fixture
def evaluator(monkeypatch: pytest.MonkeyPatch) -> Evaluator:
    result = Evaluator()
    monkeypatch.setattr(scoring, "make_evaluator", lambda config: result)
    return result


def store(run: Path, *qualities: float) -> None:
    """Store a snapshot per member, after one slice."""
    for i, quality in enumerate(qualities):
        row = fresh(rl.RLBuilder(CONFIG), i)
        row["params"][0] = quality
        name = f"m{i:02d}/000000"
        SnapshotStore(run / "members").commit(name, row, {"report": {"step": 100, "hyperparameters": {}}})


def test_fittest_are_compared_and_best_is_scored_on_new_seeds(tmp_path: Path, evaluator: Evaluator) -> None:
    """m00 would be the best, but is not among the fittest."""
    store(tmp_path, 9.0, 3.0, 1.0, 2.0)
    population = after_one_slice(*FITNESS)
    population.record(decision(assign(population, "m01", hyperparameters={"lr": 9.0})))  # it has begun something else
    best = final_choice.choose(CONFIG, RunDirectory(tmp_path), population)
    (candidates, selecting), (chosen, scoring) = evaluator.calls
    assert candidates == [1.0, 3.0, 2.0]
    assert chosen == [3.0]
    assert (selecting["episodes"], scoring["episodes"]) == (4, 5)
    assert not selecting["deterministic"]
    assert not scoring["deterministic"]
    assert selecting["seed"] != scoring["seed"]
    (selected, *others), (scored,) = evaluator.played
    assert selected.seeds == others[0].seeds  # the same start for all candidates
    assert not set(selected.seeds) & set(scored.seeds)
    assert (best["member"], best["snapshot"]) == ("m01", "m01/000000")
    assert best["training_fitness"] == 4.0
    assert best["hyperparameters"] == population.members["m01"].snapshot_hparams != {"lr": 9.0}
    assert best["evaluation"]["return_mean"] == np.mean(scored.returns) != np.mean(evaluator.played[0][1].returns)
    assert best["evaluation"]["seed"] == scoring["seed"]
    assert [s["member"] for s in best["selection"]] == ["m02", "m01", "m03"]
    assert [s["return_mean"] for s in best["selection"]] == [np.mean(one.returns) for one in evaluator.played[0]]
    assert json.loads((tmp_path / "best.json").read_text()) == best


def test_choice_has_half_of_the_time_and_the_score_the_rest(
    tmp_path: Path, evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(tmp_path, 9.0, 3.0, 1.0, 2.0)
    clock = iter([100.0, 103.0])
    monkeypatch.setattr(final_choice, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    final_choice.choose(CONFIG, RunDirectory(tmp_path), after_one_slice(*FITNESS), seconds=10.0)
    assert [options["seconds"] for _, options in evaluator.calls] == [5.0, 7.0]


def test_another_run_is_scored_on_other_seeds(tmp_path: Path, evaluator: Evaluator) -> None:
    store(tmp_path, 9.0, 3.0, 1.0, 2.0)
    for config in (CONFIG, with_setting(CONFIG, "seed", 8), CONFIG):
        final_choice.choose(config, RunDirectory(tmp_path), after_one_slice(*FITNESS))
    seeds = [options["seed"] for _, options in evaluator.calls]
    assert len(set(seeds)) == 4
    assert seeds[:2] == seeds[4:]


def test_fitter_member_is_chosen_among_equal_scores(tmp_path: Path, evaluator: Evaluator) -> None:
    evaluator.noise = 0.0
    store(tmp_path, 2.0, 1.0, 2.0, 2.0)
    assert final_choice.choose(CONFIG, RunDirectory(tmp_path), after_one_slice(3.0, 5.0, 4.0, 0.0))["member"] == "m02"


# Student's t at 0.975 and n - 1 degrees of freedom, from a printed table
T = {2: 12.706, 3: 4.303, 5: 2.776, 16: 2.131, 31: 2.042}


@pytest.mark.parametrize("n", T)
def test_interval_is_students_t(tmp_path: Path, evaluator: Evaluator, n: int) -> None:
    store(tmp_path, 3.0)
    (score,) = scoring.evaluate(CONFIG, RunDirectory(tmp_path), ["m00/000000"], episodes=n, seed=1)
    ((played,),) = evaluator.played
    mean = sum(played.returns) / n
    std = math.sqrt(sum((r - mean) ** 2 for r in played.returns) / (n - 1))
    half = T[n] * std / math.sqrt(n)
    assert score["return_mean"] == pytest.approx(mean)
    assert score["return_std"] == pytest.approx(std)
    assert score["ci95"] == pytest.approx([mean - half, mean + half], rel=1e-4)
    assert (score["return_min"], score["return_max"]) == (min(played.returns), max(played.returns))
    assert (score["episodes"], score["length_mean"]) == (n, (n + 1) / 2)
    assert (score["member"], score["env_steps"], score["seeds"]) == ("m00", 100, played.seeds)


def test_one_episode_has_no_spread(tmp_path: Path, evaluator: Evaluator) -> None:
    store(tmp_path, 3.0)
    (score,) = scoring.evaluate(CONFIG, RunDirectory(tmp_path), ["m00/000000"], episodes=1, seed=1)
    assert (score["return_std"], score["ci95"]) == (None, None)


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_evaluation_takes_the_mode(tmp_path: Path, evaluator: Evaluator, deterministic: bool) -> None:
    store(tmp_path, 3.0)
    how: Any = {"episodes": 2, "seed": 1, "deterministic": deterministic}
    (score,) = scoring.evaluate(CONFIG, RunDirectory(tmp_path), ["m00/000000"], **how)
    ((_, options),) = evaluator.calls
    assert options["deterministic"] is score["deterministic"] is deterministic
