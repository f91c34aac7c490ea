"""Conformance classes and fakes, with which other people test their own strategies, agents and trainables.

Needs pytest. A test is a short subclass: it says how to make the thing, and inherits what the thing promises.

    from pbtrl.testing import PopulationConformance

    class TestMine(PopulationConformance):
        @classmethod
        def strategy(cls): return MyStrategy(space=cls.space, slice_steps=cls.slice_steps, horizon=cls.horizon)
"""

from pbtrl.testing.agents import AgentConformance
from pbtrl.testing.fakes import FakeExecutor, died, trained
from pbtrl.testing.strategies import BaseConformance, PopulationConformance, SearchConformance
from pbtrl.testing.trainables import TrainableConformance

__all__ = [
    "AgentConformance",
    "BaseConformance",
    "FakeExecutor",
    "PopulationConformance",
    "SearchConformance",
    "TrainableConformance",
    "died",
    "trained",
]
