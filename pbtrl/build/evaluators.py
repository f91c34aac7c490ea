"""Evaluators: fresh episodes with snapshots of any agent or trainable of a config."""

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
from pbtrl.core.tensors import Tensors, check_fit
from pbtrl.errors import SnapshotError
from pbtrl.trainables.sequential import TrainableBuilder

Evaluator = Callable[..., list[Any]]


def make_evaluator(config: Config) -> Evaluator:
    """`(rows, agents, episodes=, seed=, deterministic=, seconds=)` -> per snapshot what `rl.evaluate.Episodes` holds.

    `agents` says which of the mix each snapshot is, None without a mix.
    """
    if config.env is None:
        return functools.partial(_evaluate_trainables, trainable_builder(config))
    import torch

    torch.set_num_threads(1)
    builders = {name: RLBuilder(config, name) for name in config.kinds}
    return functools.partial(_evaluate_agents, builders, threads=usable_cores())


def _evaluate_agents(
    builders: Mapping[str | None, RLBuilder], rows: Sequence[Tensors], agents: Sequence[str | None], *,
    seconds: float | None = None, **options: Any,
) -> list[Any]:  # fmt: skip
    """The snapshots of each agent together, whatever their order; each agent gets an equal share of the `seconds`."""
    played: dict[int, Any] = {}
    kinds = list(dict.fromkeys(agents))
    for agent in kinds:
        if agent not in builders:
            raise SnapshotError(f"a snapshot is of an agent that the config does not have: {agent}")
        places = [i for i, other in enumerate(agents) if other == agent]
        options["seconds"] = None if seconds is None else seconds / len(kinds)
        played |= zip(places, builders[agent].evaluate([rows[i] for i in places], **options), strict=True)
    return [played[i] for i in range(len(rows))]


def _evaluate_trainables(
    builder: TrainableBuilder, rows: Sequence[Tensors], agents: Sequence[str | None], *, episodes: int, seed: int,
    deterministic: bool = False, seconds: float | None = None,
) -> list[Any]:  # fmt: skip
    """One evaluation is all there is to a trainable, however many episodes are asked for."""
    found = []
    for row in rows:
        rng = np.random.default_rng(seed)
        trainable = builder.make(rng)
        check_fit(trainable.state_dict(), row)
        trainable.load_state_dict(row)
        played = {"returns": [trainable.evaluate(rng)], "lengths": [0], "seeds": [seed]}
        found.append(SimpleNamespace(**played, max_steps=None, truncated=0, timed_out=False))
    return found
