"""pbtrl: deep reinforcement learning with population based training built in."""

__version__ = "0.1.0"
