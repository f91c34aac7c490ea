"""PB2, population based bandits (Parker-Holder et al. 2020, arXiv 2002.02518).

PBT in which a model chooses the receiver's hyperparameters: a time-varying Gaussian process predicts from the time, the
fitness before a slice and its hyperparameters how much fitness the slice gains. The receiver gets the hyperparameters
with the highest upper confidence bound, given the donor's time and fitness. Choices are drawn at random.

Members of one agent of a mix have a model of their own.
"""

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from typing_extensions import override

from pbtrl.core.dimensions import Choice
from pbtrl.core.messages import Assignment, Hyperparameters
from pbtrl.core.population import Population
from pbtrl.strategies.pb2_model import Model, SliceStart, Time
from pbtrl.strategies.pb2_rows import SliceRows, agent_of
from pbtrl.strategies.pbt import PBT
from pbtrl.strategies.rules import Explore
from pbtrl.strategies.time_varying_gp import Floats


@dataclass(frozen=True, kw_only=True)
class PB2(PBT):
    """Strategy of population based bandits.

    Attributes:
        time: time counts in slices (`rounds`), so that correlation fades with every slice, or is scaled to [0, 1]
            (`normalized`) as in the authors' code, where it hardly fades.
        spread: the upper confidence bound adds the standard deviation (`sd`), as in the theory, or the `variance`, as
            in the authors' code.
        window: number of latest slices that the model is fitted to.
    """

    explore: Explore = field(default_factory=lambda: Explore(method="none"))
    time: Time = "rounds"
    spread: Literal["sd", "variance"] = "sd"
    window: int = 200

    @override
    def decide(self, population: Population) -> list[Assignment]:
        """Decide as PBT, with hyperparameters from the model for those that copy: one by one, in the order of ids."""
        decided = super().decide(population)
        if all(a.donor is None for a in decided):
            return decided
        rows = SliceRows.of(self, self.window, population)
        models: dict[object, Model] = {}
        tried: dict[object, list[SliceStart]] = defaultdict(list)
        for a in [*population.pending, *(a for a in decided if a.donor is None)]:
            tried[agent_of(a)].append(rows.start(population, a.parent, a.hyperparameters))
        assignments = []
        for a in decided:
            if a.donor is not None:
                agent, now = agent_of(a), rows.start(population, a.parent, a.hyperparameters)
                if agent not in models:
                    models[agent] = rows.model(agent, self.time, len(now.position))
                rng = population.rng(a.member, a.generation, "pb2")
                position = models[agent].propose(now, tried[agent], self.spread, rng)
                a = replace(a, hyperparameters=self._values(a.hyperparameters, position, rng))
                tried[agent].append(rows.start(population, a.parent, a.hyperparameters))
            assignments.append(a)
        return assignments

    def _values(self, donors: Hyperparameters, position: Floats, rng: np.random.Generator) -> Hyperparameters:
        """Return the donor's hyperparameters with the numeric ones at a position, and choices drawn."""
        values, places = dict(donors), iter(position)
        for name, dimension in self.space.of(donors).items():
            if isinstance(dimension, Choice):
                values[name] = dimension.sample(rng)
            else:
                values[name] = dimension.from_unit(float(next(places)))
        return values
