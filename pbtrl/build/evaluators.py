"""Evaluators, which play fresh episodes with snapshots of any agent or trainable of a config."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from pbtrl.build.placement import usable_cores
from pbtrl.build.rl import RLBuilder
from pbtrl.build.trainables import trainable_builder
from pbtrl.config.schema import Config
from pbtrl.core.dimensions import AGENT
from pbtrl.core.messages import Hyperparameters
from pbtrl.core.tensors import Tensors, check_fit
from pbtrl.errors import SnapshotError
from pbtrl.trainables.builder import TrainableBuilder

Evaluator = Callable[..., list[Any]]


def make_evaluator(config: Config) -> Evaluator:
    """Make a function `(rows, hyperparameters, episodes=, seed=, deterministic=, seconds=)` that evaluates snapshots.

    `rows` are the tensors of each snapshot, `hyperparameters` those of its report. A trainable is scored on its own
    held-out data with `held_out=True`. The result has one object per snapshot, with the attributes of
    `rl.evaluation.EvaluationEpisodes`.
    """
    if config.env is None:
        return functools.partial(_evaluate_trainables, trainable_builder(config))
    import torch

    torch.set_num_threads(1)
    builders = {name: RLBuilder(config, name) for name in config.per_agent_configs}
    return functools.partial(_evaluate_agents, builders, threads=usable_cores())


def _evaluate_agents(
    builders: Mapping[str | None, RLBuilder], rows: Sequence[Tensors], hyperparameters: Sequence[Hyperparameters], *,
    seconds: float | None = None, held_out: bool = False, **options: Any,
) -> list[Any]:  # fmt: skip
    """Evaluate the snapshots agent by agent, each with an equal share of the `seconds`; keep the given order."""
    results: dict[int, Any] = {}
    agents = [h.get(AGENT) for h in hyperparameters]
    distinct = list(dict.fromkeys(agents))
    for agent in distinct:
        if agent not in builders:
            raise SnapshotError(f"a snapshot is of an agent that the config does not have: {agent}")
        places = [i for i, other in enumerate(agents) if other == agent]
        options["seconds"] = None if seconds is None else seconds / len(distinct)
        results |= zip(places, builders[agent].evaluate([rows[i] for i in places], **options), strict=True)
    return [results[i] for i in range(len(rows))]


def _evaluate_trainables(
    builder: TrainableBuilder, rows: Sequence[Tensors], hyperparameters: Sequence[Hyperparameters], *, episodes: int,
    seed: int, deterministic: bool = False, seconds: float | None = None, held_out: bool = False,
) -> list[Any]:  # fmt: skip
    """Evaluate each trainable once, whatever the number of episodes: it has only one evaluation."""
    results = []
    for row, values in zip(rows, hyperparameters, strict=True):
        rng = np.random.default_rng(seed)
        trainable = builder.make(rng, builder.structure_of(values))
        check_fit(trainable.state_dict(), row)
        trainable.load_state_dict(row)
        test = getattr(trainable, "test", None) if held_out else None
        score = test or trainable.evaluate
        results.append(
            SimpleNamespace(
                returns=[float(score(rng))],
                lengths=[0],
                seeds=[seed],
                max_steps=None,
                truncated=0,
                timed_out=False,
                held_out=test is not None,
            )
        )
    return results
