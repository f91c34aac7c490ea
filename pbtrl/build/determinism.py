"""Determinism of a run, as its journal's header states it."""

from __future__ import annotations

from pbtrl.config.schema import Config

DETERMINISTIC = "yes, bit for bit on this kind of processor with these versions"


def is_deterministic(config: Config) -> bool:
    """Return whether a run is deterministic."""
    return determinism(config) == DETERMINISTIC


def determinism(config: Config) -> str:
    """Return `yes, ...` with the conditions, or `no, because ...` with the reason."""
    if config.population.mode == "async":
        return "no, because members decide when they are done (population.mode: async)"
    if config.acting is not None and config.acting.mode == "actors":
        return "no, because actors act with whatever weights are newest (acting.mode: actors)"
    if config.acting is not None and config.acting.mode == "hogwild" and config.acting.processes > 1:
        return "no, because processes change the weights without locks (acting.mode: hogwild)"
    if config.env is not None and config.env.between_slices == "continue":
        return "no, because envs run on between slices (env.between_slices: continue)"
    return DETERMINISTIC
