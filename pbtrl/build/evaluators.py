"""Evaluators, which play fresh episodes with snapshots of any agent or trainable of a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from typing_extensions import override

from pbtrl.build.placement import usable_cores
from pbtrl.build.rl import RLBuilder
from pbtrl.build.trainables import trainable_builder
from pbtrl.config.schema import Config
from pbtrl.core.dimensions import AGENT
from pbtrl.core.messages import Hyperparameters
from pbtrl.core.scores import EvaluationEpisodes
from pbtrl.core.tensors import Tensors, check_fit
from pbtrl.errors import SnapshotError
from pbtrl.system.torch_settings import single_thread
from pbtrl.trainables.builder import TrainableBuilder

if TYPE_CHECKING:
    from pbtrl.rl.video import Camera


class Evaluator(Protocol):
    """Interface of evaluators."""

    def __call__(
        self, rows: Sequence[Tensors], hyperparameters: Sequence[Hyperparameters], *, episodes: int, seed: int,
        deterministic: bool = False, seconds: float | None = None, held_out: bool = False,
        camera: Camera | None = None,
    ) -> list[EvaluationEpisodes]:  # fmt: skip
        """Evaluate snapshots; returns the episodes of each, in the given order.

        Args:
            rows: tensors of each snapshot.
            hyperparameters: hyperparameters of each snapshot's report.
            episodes: number of episodes per snapshot.
            seed: root of the env seeds and of the action noise.
            deterministic: whether to use the policy's mode instead of a sample.
            seconds: time after which unfinished episodes are cut; None without a limit.
            held_out: whether to score a trainable on its own held-out data, if it has any.
            camera: recorder of the first episode of some envs.

        Raises:
            SnapshotError: a snapshot is of an agent that the config does not have, or does not fit it.
        """


def make_evaluator(config: Config) -> Evaluator:
    """Make the evaluator of a config's agents, or of its trainable."""
    if config.env is None:
        return _TrainableEvaluator(trainable_builder(config))
    return _AgentEvaluator({name: RLBuilder(config, name) for name in config.per_agent_configs}, usable_cores())


@dataclass(frozen=True)
class _AgentEvaluator(Evaluator):
    """Evaluator of the snapshots agent by agent, each with an equal share of the time."""

    builders: Mapping[str | None, RLBuilder]
    threads: int

    @override
    def __call__(
        self, rows: Sequence[Tensors], hyperparameters: Sequence[Hyperparameters], *, episodes: int, seed: int,
        deterministic: bool = False, seconds: float | None = None, held_out: bool = False,
        camera: Camera | None = None,
    ) -> list[EvaluationEpisodes]:  # fmt: skip
        results: dict[int, EvaluationEpisodes] = {}
        agents = [h.get(AGENT) for h in hyperparameters]
        distinct = list(dict.fromkeys(agents))
        for agent in distinct:
            if agent not in self.builders:
                raise SnapshotError(f"a snapshot is of an agent that the config does not have: {agent}")
            places = [i for i, other in enumerate(agents) if other == agent]
            with single_thread():
                played = self.builders[agent].evaluate(
                    [rows[i] for i in places], episodes=episodes, seed=seed, deterministic=deterministic,
                    threads=self.threads, seconds=None if seconds is None else seconds / len(distinct), camera=camera,
                )  # fmt: skip
            results |= zip(places, played, strict=True)
        return [results[i] for i in range(len(rows))]


@dataclass(frozen=True)
class _TrainableEvaluator(Evaluator):
    """Evaluator of each trainable once, whatever the number of episodes: it has only one evaluation."""

    builder: TrainableBuilder

    @override
    def __call__(
        self, rows: Sequence[Tensors], hyperparameters: Sequence[Hyperparameters], *, episodes: int, seed: int,
        deterministic: bool = False, seconds: float | None = None, held_out: bool = False,
        camera: Camera | None = None,
    ) -> list[EvaluationEpisodes]:  # fmt: skip
        results = []
        for row, values in zip(rows, hyperparameters, strict=True):
            rng = np.random.default_rng(seed)
            trainable = self.builder.make(rng, self.builder.structure_of(values))
            check_fit(trainable.state_dict(), row)
            trainable.load_state_dict(row)
            test = getattr(trainable, "test", None) if held_out else None
            score = float((test or trainable.evaluate)(rng))
            results.append(EvaluationEpisodes([score], lengths=[0], seeds=[seed], held_out=test is not None))
        return results
