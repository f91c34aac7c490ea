"""Conformance classes and fakes, for tests of your own strategies, agents and trainables.

They need pytest. A test class is a short subclass, which makes the object under test and inherits the tests.

    from pbtrl.testing import PopulationConformance

    class TestMine(PopulationConformance):
        @classmethod
        def strategy(cls): return MyStrategy(space=cls.space, slice_steps=cls.slice_steps, horizon=cls.horizon)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = {
    "AgentConformance": "agents",
    "BaseConformance": "strategies",
    "FakeExecutor": "fakes",
    "PopulationConformance": "strategies",
    "SearchConformance": "strategies",
    "TrainableConformance": "trainables",
    "died": "fakes",
    "trained": "fakes",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is used, because only agents need torch."""
    if name not in _MODULES:
        raise AttributeError(f"module 'pbtrl.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pbtrl.testing.{_MODULES[name]}"), name)
