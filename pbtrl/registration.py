"""Registration of agents, strategies and trainables of one's own, so that configs can name them."""

from __future__ import annotations

from pbtrl.config import registry


def register_agent(name: str, settings: type) -> None:
    """Register an agent, so that configs can name it; see docs/own-agent.md.

    Args:
        name: value of `agent.name` in configs. Runs store the `module:Class` instead.
        settings: importable frozen dataclass derived from `pbtrl.agents.settings.ActorCriticSettings`.

    Raises:
        ValueError: the name is taken, or the class is in a script or a notebook, which other processes cannot import.
    """
    registry.register("agent", name, settings)


def register_strategy(name: str, settings: type) -> None:
    """Register a strategy, so that configs can name it; see docs/own-strategy.md.

    Args:
        name: value of `strategy.name` in configs.
        settings: frozen dataclass derived from `pbtrl.strategies.settings.StrategySettings`.

    Raises:
        ValueError: as `register_agent`.
    """
    registry.register("strategy", name, settings)


def register_trainable(name: str, trainable: type) -> None:
    """Register a trainable, so that configs can name it; see docs/own-trainable.md.

    Args:
        name: value of `trainable.name` in configs.
        trainable: class with the methods of `pbtrl.core.trainable.Trainable`; its constructor takes a random generator
            and the keys of the config.

    Raises:
        ValueError: as `register_agent`.
    """
    registry.register("trainable", name, trainable)
