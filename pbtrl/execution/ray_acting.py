"""Actors on other nodes than their learner: a worker's placement group, and the wire between learner and actors.

    group: {CPU: cores_per_worker, ...} {CPU: 1} {CPU: 1} ...      bundle 0 is the worker's, bundle 1 + i actor i's

Ray spreads the bundles over as many nodes as it can. The worker starts the actors, so they die with it. The cohorts of
a worker train in turn, so their actors share the bundles, and reserve nothing of their own. Only bytes pass through
Ray.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pbtrl.config.sections import Execution
from pbtrl.execution.ray_text import classify_death, describe_death
from pbtrl.execution.ray_worker import check_versions, facts
from pbtrl.system.child_process import declare_supervised
from pbtrl.system.imports import import_object


def reserve(demand: Mapping[str, float], actors: int) -> Any:
    """Reserve what a worker needs and a core for each of its actors, on as many nodes as there are; does not wait."""
    return placement_group([dict(demand), *({"CPU": 1} for _ in range(actors))], strategy="SPREAD")


def release(group: Any) -> None:
    """Give up a group; whatever runs in it ends."""
    with contextlib.suppress(RayError, ValueError):
        remove_placement_group(group)


def in_bundle(group: Any, bundle: int) -> Any:
    """Scheduling strategy of what runs in a bundle of a group."""
    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)


class ActingActor:
    """Actor `entry(argument)` on its node, which is refused if it has other versions than `expected` (None: any)."""

    def __init__(self, entry: str, argument: str, paths: Sequence[str], expected: dict[str, Any] | None) -> None:
        sys.path.extend(path for path in paths if path not in sys.path)
        if expected is not None:
            check_versions(expected, facts())
        declare_supervised()
        self._actor = import_object(entry)(argument)

    def work(self, message: bytes, data: bytes | None) -> bytes:
        """Pass a call on."""
        answer: bytes = self._actor.work(message, data)
        return answer


class RayWire:
    """Wire from a worker on Ray to its actors; implements `pbtrl.rl.remote_actors.Wire`.

    Args:
        settings: `execution` of the config.
    """

    def __init__(self, settings: Execution) -> None:
        self.patience = settings.wait_for_workers
        self._group = ray.util.get_current_placement_group()
        self._expected = None if settings.allow_mixed else facts()

    def put(self, data: bytes) -> Any:
        """Put the data into the shared memory of this node."""
        return ray.put(data)

    def start(self, place: int, entry: str, argument: str) -> Any:
        """Start an actor in its bundle."""
        actor: Any = ray.remote(ActingActor)
        return actor.options(
            num_cpus=0, max_restarts=0, max_task_retries=0, scheduling_strategy=in_bundle(self._group, 1 + place)
        ).remote(entry, argument, sys.path, self._expected)

    def call(self, actor: Any, message: bytes, reference: Any) -> Any:
        """Start a call; its node fetches the data meanwhile."""
        return actor.work.remote(message, reference)

    def wait(self, calls: Sequence[Any], timeout: float) -> Sequence[Any]:
        """Wait for results that are on this node."""
        first, _ = ray.wait(list(calls), timeout=timeout)
        if not first:
            return []
        ended: list[Any] = ray.wait(list(calls), num_returns=len(calls), timeout=0)[0] or first
        return ended

    def result(self, call: Any) -> bytes:
        """Return the bytes of a result."""
        try:
            answer: bytes = ray.get(call)
        except RayError as error:
            preempted = isinstance(error, RayActorError) and error.preempted
            death = classify_death(str(error), type(error).__name__, preempted=preempted)
            raise ConnectionError(describe_death(death, str(error))) from error
        return answer

    def end(self, actor: Any) -> None:
        """Kill an actor."""
        with contextlib.suppress(RayError):
            ray.kill(actor)
