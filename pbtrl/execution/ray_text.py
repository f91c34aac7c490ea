"""Ray's messages shortened or written to a file, and the capacity of nodes; all without importing Ray."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pbtrl.system.files import open_log

Death = Literal["process", "memory", "preempted", "node", "network", "unknown"]


def classify_death(text: str, kind: str, *, preempted: bool = False) -> Death:
    """Return why a worker died.

    Args:
        text: text of Ray's error.
        kind: name of its class.
        preempted: whether Ray says that the node was taken back.
    """
    if preempted:
        return "preempted"
    if "memory pressure" in text or kind == "OutOfMemoryError":
        return "memory"
    if "node has died" in text or kind == "NodeDiedError":
        return "node"
    if kind == "ActorUnavailableError":
        return "network"
    return "process" if "worker process has died" in text else "unknown"


def describe_death(death: Death, text: str) -> str:
    """Describe a death in few words, with the address of the node as far as Ray's text has it."""
    address = re.search(r"^\s*ip: (\S+)", text, re.MULTILINE)
    where = f"node {address[1]}" if address else "its node"
    return {
        "process": f"died: its process on {where} was killed, ran out of memory or crashed",
        "memory": f"killed: {where} ran out of memory",
        "preempted": f"lost: {where} was preempted",
        "node": f"lost: {where} is gone",
        "network": f"lost: {where} cannot be reached",
        "unknown": f"died: {last_line(text)}",
    }[death]


def last_line(text: str) -> str:
    """Return the last line of an error's text, where Ray puts the cause."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason known"


def count_room(resources: Mapping[str, float], demand: Mapping[str, float]) -> int:
    """Return how many workers a node has room for."""
    return int(min(resources.get(name, 0) / amount + 1e-6 for name, amount in demand.items()))  # 1.0 // 0.1 is 9.0


def count_workers(nodes: Sequence[Mapping[str, float]], demand: Mapping[str, float], actors: int) -> int:
    """Return how many workers nodes with these resources have room for, if the actors of each need a core of any."""
    room = sum(count_room(resources, demand) for resources in nodes)
    return min(room, _cores(nodes) // (int(demand["CPU"]) + actors)) if actors else room


def describe_shortage(nodes: Sequence[Mapping[str, float]], demand: Mapping[str, float], actors: int) -> str | None:
    """Say what nodes with these resources lack for one worker; None if there is room."""
    if count_workers(nodes, demand, actors):
        return None
    if count_workers(nodes, demand, 0):
        whose = f"its {actors} actors" if actors > 1 else "its actor"
        need = f"a worker and {whose} (acting.processes) need {demand['CPU'] + actors:g} cores"
        return f"{need}, and all nodes together have {_cores(nodes)}"
    table = ", ".join(listed({name: resources.get(name, 0) for name in demand}) for resources in nodes)
    return f"no node has {listed(demand)} for a worker (the nodes have {table})"


def _cores(nodes: Sequence[Mapping[str, float]]) -> int:
    return sum(int(resources.get("CPU", 0)) for resources in nodes)


def listed(resources: Mapping[str, float]) -> str:
    """Format resources as `{CPU: 2, trainer: 1}`."""
    return "{" + ", ".join(f"{name}: {amount:g}" for name, amount in resources.items()) + "}"


@contextlib.contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Write what Ray prints and logs about workers and nodes to a file instead of the terminal."""
    logger, handler = logging.getLogger("ray"), logging.FileHandler(log, delay=True)
    before = logger.handlers[:], logger.propagate, logger.level
    logger.handlers[:], logger.propagate = [handler], False
    try:
        with _replaced_printing(log):
            yield
    finally:
        logger.handlers[:], logger.propagate = before[:2]
        logger.setLevel(before[2])
        handler.close()


@contextlib.contextmanager
def _replaced_printing(log: Path) -> Iterator[None]:
    inside = sys.modules.get("ray._private.worker")
    printing: Callable[..., None] | None = getattr(inside, "print_to_stdstream", None)
    if inside is None or printing is None:  # a later Ray
        yield
        return

    def write(data: dict[str, Any], *_: Any, **__: Any) -> None:
        with contextlib.suppress(OSError), open_log(log) as file:
            file.writelines(f"{line}\n" for line in data.get("lines", ()))

    inside.print_to_stdstream = write  # type: ignore[attr-defined]
    try:
        yield
    finally:
        inside.print_to_stdstream = printing  # type: ignore[attr-defined]
