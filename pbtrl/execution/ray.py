"""Executor on a Ray cluster: one actor per worker, and one on the driver's node that writes the run directory.

    controller -> RayPool -- work(assignments, seconds) --> worker actor: host
               <-          <-- reports, failures ---------     |  bytes of snapshots, metrics, logs
                                                             store actor on this node -> run directory

Each worker has one call in flight, whose answer is its message queue and whose exception is its death. Ray restarts no
worker, because a call that Ray repeats could train a slice twice: `worker_pool` replaces the dead. A worker for which
no node has room gives its members to the others.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import (
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from typing_extensions import override

from pbtrl.config.sections import Execution
from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.errors import WorkerError
from pbtrl.execution.ray_acting import in_bundle, release, reserve
from pbtrl.execution.ray_checks import cluster_address, token_file
from pbtrl.execution.ray_text import (
    classify_death,
    count_workers,
    describe_death,
    describe_shortage,
    last_line,
    listed,
    quiet,
)
from pbtrl.execution.ray_worker import RemoteWorker, check_versions, facts
from pbtrl.execution.remote_store import Answer, StoreDesk
from pbtrl.execution.worker import WorkerSpec
from pbtrl.execution.worker_messages import ToWorker, decode, encode
from pbtrl.execution.worker_pool import ExecutorWorker, PooledExecutor
from pbtrl.system.child_process import declare_supervised
from pbtrl.system.signals import EXIT
from pbtrl.system.strict_json import to_json

CALL_SECONDS = 0.5  # after which a worker without news answers, so that it can take messages
MAX_CALL_SECONDS = 4.0  # the same for many workers; a stop must not take longer than members have to save
ANSWERS_PER_SECOND = 250  # without news, from all workers together
CALLS_PER_ANSWER = 50  # a wait ends with one answer for every so many open calls, not with each answer
PATIENCE = 60.0  # seconds that a replacement may wait for room before its members move
CACHE = 128 * 2**20  # bytes of recently loaded snapshots that the store keeps in shared memory
STORE_THREADS = 8
SURVEY = 120.0  # seconds for a node's answer to doctor
EXCLUDED_FROM_UPLOAD = ["runs/", ".git/", ".venv/", "__pycache__/"]


class StoreActor:
    """Desk of the run directory; a snapshot that several workers load goes to each node once."""

    def __init__(self, members: str) -> None:
        self._desk = StoreDesk(Path(members))
        self._cached: OrderedDict[str, tuple[ray.ObjectRef[Any], int]] = OrderedDict()

    def answer(self, verb: str, *arguments: Any) -> tuple[str, Any]:
        """As `StoreDesk.answer`, but the result of `read` is a list with the reference of an object."""
        if verb == "read" and (hit := self._cached.get(arguments[0])):
            return "", [hit[0]]
        if verb in ("write", "quarantine"):
            self._cached.pop(arguments[0], None)
        error, result = self._desk.answer(verb, *arguments)
        if verb != "read" or error:
            return error, result
        reference = ray.put(result)
        self._cached[arguments[0]] = reference, sum(map(len, result.values()))
        while sum(size for _, size in list(self._cached.values())) > CACHE and len(self._cached) > 1:
            self._cached.popitem(last=False)
        return "", [reference]


class WorkerActor(RemoteWorker):
    """Worker that reaches the run directory through a store actor, unless its node sees the directory itself."""

    def __init__(self, spec: str, store: Any) -> None:
        declare_supervised()
        super().__init__(spec, None if store is None else partial(_ask, store))


def _facts(probe: str) -> str:
    return to_json(facts(Path(probe) if probe else None))


def _ask(store: Any, verb: str, *arguments: Any) -> Answer:
    for last in (False, True):
        error, result = ray.get(store.answer.remote(verb, *arguments))
        if error or verb != "read":
            break
        try:
            return "", ray.get(result[0])
        except ObjectLostError:  # the store was restarted meanwhile
            if last:
                raise
    return error, result


class Cluster:
    """Connection of this process to a Ray cluster.

    Args:
        settings: `execution` of the config.
        log: file for what Ray prints.
        actors: number of actors that each worker has on other nodes.

    Raises:
        ConfigProblem: RAY_ADDRESS is invalid.
        WorkerError: there is no such cluster, or it refuses this process.
    """

    def __init__(self, settings: Execution, log: Path, actors: int = 0) -> None:
        self.settings, self.address, self._actors = settings, cluster_address(settings), actors
        self._folder: Path | None = None
        self._joined = not ray.is_initialized()  # else the caller's script has done so, and goes on with Ray after us
        with contextlib.ExitStack() as undo:
            undo.enter_context(quiet(log.resolve()))
            if self._joined:
                undo.callback(self._leave)
                self._join()
            self.node = ray.get_runtime_context().get_node_id()
            self._undo = undo.pop_all()

    def _join(self) -> None:
        local, settings = self.address == "local", self.settings
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        options: dict[str, Any] = {}
        if local:
            os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own default is 15: anything else goes first
            if not token_file().exists():  # Ray would write one that everybody can read
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            self._folder = Path(tempfile.mkdtemp(prefix="pbtrl-ray-"))
            count = settings.workers if isinstance(settings.workers, int) else 1
            cores = max(len(os.sched_getaffinity(0)), count * (settings.cores_per_worker + self._actors))
            options = {"num_cpus": cores, "resources": {k: v * count for k, v in settings.resources.items()},
                       "_temp_dir": str(self._folder), "include_dashboard": False}  # fmt: skip
        if settings.ship:
            options["runtime_env"] = {"working_dir": str(Path.cwd()), "excludes": EXCLUDED_FROM_UPLOAD}
        handlers = {number: signal.getsignal(number) for number in EXIT}
        try:
            # Workers would look for modules in the working directory first, which may be untrusted.
            with contextlib.chdir("/"), warnings.catch_warnings(action="ignore"):
                ray.init(self.address, log_to_driver=False, logging_level=logging.WARNING, **options)
        except (RayError, ConnectionError, TimeoutError, RuntimeError, ValueError, OSError) as error:
            raise WorkerError(f"cannot join the Ray cluster ({self.address}): {last_line(str(error))}") from error
        finally:
            for number, handler in handlers.items():  # Ray sets its own
                with contextlib.suppress(ValueError):  # not in the main thread
                    signal.signal(number, handler)

    def _leave(self) -> None:
        ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """Disconnect, and end a local cluster; does nothing if called again."""
        self._undo.close()

    def nodes(self) -> list[dict[str, Any]]:
        """Return Ray's table of the nodes that are alive."""
        return [node for node in ray.nodes() if node["Alive"]]

    @property
    def demand(self) -> dict[str, float]:
        """Resources that a worker needs on one node; its actors need a core each, on any node."""
        gpus = {"GPU": self.settings.gpus_per_worker} if self.settings.gpus_per_worker else {}
        return {"CPU": float(self.settings.cores_per_worker), **gpus, **self.settings.resources}

    def room(self) -> int:
        """Return the number of workers that all nodes together have room for, with their actors."""
        return count_workers([node["Resources"] for node in self.nodes()], self.demand, self._actors)

    def describe(self) -> str:
        """Describe the cluster in one line."""
        nodes = self.nodes()
        cores = sum(node["Resources"].get("CPU", 0) for node in nodes)
        login = "token login" if os.environ.get("RAY_AUTH_MODE") == "token" else "NO login"
        where = "started on this machine" if self.address == "local" else ray.get_runtime_context().gcs_address
        count = f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}"
        return f"Ray {ray.__version__} ({where}): {count}, {cores:.0f} cores, {login}; it listens on all interfaces"

    def shortage(self) -> str | None:
        """Return which resources the nodes do not have in total; None if there is room for a worker."""
        return describe_shortage([node["Resources"] for node in self.nodes()], self.demand, self._actors)

    def survey(self, probe: Path | None = None) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Return each node, as in `nodes`, with the `facts` of a process on it.

        Raises:
            WorkerError: a node does not answer, or lacks pbtrl.
        """
        task: Any = ray.remote(_facts)
        asked = []
        for node in self.nodes():
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked.append((node, task.options(num_cpus=0, scheduling_strategy=there).remote(str(probe or ""))))
        result = []
        for node, call in asked:
            try:
                result.append((node, json.loads(ray.get(call, timeout=SURVEY))))
            except RayError as error:
                raise WorkerError(f"node {node['NodeManagerAddress']}: {last_line(str(error))}") from error
        return result

    def store(self, members: str) -> Any:
        """Start the store on this node."""
        here = NodeAffinitySchedulingStrategy(self.node, soft=False)
        actor: Any = ray.remote(StoreActor)
        return actor.options(
            num_cpus=0, max_concurrency=STORE_THREADS, max_restarts=-1, max_task_retries=3, scheduling_strategy=here
        ).remote(members)

    def group(self) -> Any:
        """Reserve room for a worker with actors on other nodes; None if it has none."""
        return reserve(self.demand, self._actors) if self._actors else None

    def worker(self, spec: WorkerSpec, store: Any, group: Any = None) -> Any:
        """Start a worker where there is room, or in its group."""
        actor: Any = ray.remote(WorkerActor)
        placed = "SPREAD" if group is None else in_bundle(group, 0)
        return actor.options(
            num_cpus=self.settings.cores_per_worker, num_gpus=self.settings.gpus_per_worker or None,
            resources=self.settings.resources or None, max_restarts=0, max_task_retries=0, scheduling_strategy=placed,
        ).remote(to_json(asdict(spec)), store)  # fmt: skip


class RayPool(PooledExecutor["_Worker"]):
    """Executor on a cluster, which it leaves when it is closed.

    Args:
        cluster: connection to it.
        specs: one per worker.
        probe: file that all nodes must see, with its text; empty if the store writes for them.

    Attributes:
        notes: what the user should know at the start.
    """

    def __init__(self, cluster: Cluster, specs: Sequence[WorkerSpec], probe: Path | None = None) -> None:
        self.cluster, self.probe = cluster, probe
        self.store = None if probe else cluster.store(specs[0].members)
        self.call_seconds = min(MAX_CALL_SECONDS, max(CALL_SECONDS, len(specs) / ANSWERS_PER_SECOND))
        self.here = facts(probe)
        super().__init__(specs)
        self.notes = [f"{cluster.describe()}; {len(specs)} worker{'' if len(specs) == 1 else 's'}"]
        if (shortage := cluster.shortage()) is not None:
            if cluster.address == "local":
                raise WorkerError(shortage)
            self.notes.append(f"{shortage}: waiting {cluster.settings.wait_for_workers:.0f} s for one that has")

    @override
    def _start_worker(self, spec: WorkerSpec) -> _Worker:
        return _Worker(spec, self)

    @override
    def submit(self, assignments: Sequence[Assignment]) -> None:
        super().submit(assignments)
        self._call()

    @override
    def stop(self, within: float | None = None) -> None:
        super().stop(within)
        self._call()

    def _call(self) -> None:
        for worker in self._workers:
            worker.call()

    @override
    def collect(self, timeout: float) -> list[Report | Failure]:
        """Return the answers of all workers; the open assignments of a dead worker are failures.

        Raises:
            WorkerError: a worker could not start, or no node has room for any.
            DiskFullError: no space for a snapshot.
        """
        self._call()
        calls, received = {w.pending: w for w in self._workers if w.pending is not None}, []
        if not calls:
            time.sleep(timeout)
        elif self._wait(list(calls), timeout):
            ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0, fetch_local=False)
            received = [(calls[call], answer) for call in ready for answer in calls[call].receive()]
        return [*self._pass_on(received), *self._without_late()]

    def _wait(self, calls: list[Any], timeout: float) -> bool:
        """Wait for a call to end, or for several if there are many; returns whether one has."""
        count = 1 + len(calls) // CALLS_PER_ANSWER
        return bool(ray.wait(calls, num_returns=count, timeout=timeout, fetch_local=False)[0])

    def _without_late(self) -> list[Report | Failure]:
        """Give the members of workers that have waited too long for room to the others."""
        up = [w for w in self._workers if w.up]
        late = [] if self._stopping else [w for w in self._workers if w.is_late(PATIENCE if up else None)]
        if late and not up:
            wait = self.cluster.settings.wait_for_workers
            shortage = (
                self.cluster.shortage() or f"other jobs use the {listed(self.cluster.demand)} that a worker needs"
            )
            raise WorkerError(f"no worker came up within {wait:.0f} s (execution.wait_for_workers): {shortage}")
        lost: list[Failure] = []
        for worker in late:
            lost += worker.terminate("no node has room for its worker")
            self._workers.remove(worker)
            self._home = {m: w for m, w in self._home.items() if w is not worker}
        return [replace(f, error=f"{f.error}; {self._continuing()}") for f in lost]

    @override
    def close(self) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers.clear()
        if self.store is not None:
            _kill(self.store)
            self.store = None
        self.cluster.close()


class _Worker(ExecutorWorker):
    """Controller's handle of one worker actor, and of its replacements.

    Attributes:
        pending: the call in flight; None if there is none.
        up: whether the worker has answered.
    """

    def __init__(self, spec: WorkerSpec, pool: RayPool) -> None:
        super().__init__(spec)
        self._pool = pool
        self._group = pool.cluster.group()
        self._replaces = False
        self._since = time.monotonic()
        self.start()

    @override
    def start(self) -> None:
        self.began = self.up = False
        self._messages: list[bytes] = []
        self._actor = self._pool.cluster.worker(self.spec, self._pool.store, self._group)
        self.pending = self._actor.hello.remote(sys.path, str(self._pool.probe or ""))

    @override
    def send(self, message: ToWorker) -> None:
        self._messages.append(encode(message))

    def call(self) -> None:
        """Start a call if the worker has none, and there are messages for it or open assignments."""
        if self.pending is None and self.up and (self._messages or self.queue.open):
            messages, self._messages = self._messages, []
            self.pending = self._actor.work.remote(messages, self._pool.call_seconds)

    def is_late(self, patience: float | None) -> bool:
        """Return whether the worker has waited too long for room; a replacement gets only `patience` seconds."""
        limit = self._pool.cluster.settings.wait_for_workers
        limit = min(patience, limit) if self._replaces and patience is not None else limit
        return not self.up and time.monotonic() - self._since > limit

    def receive(self) -> list[Report | Failure]:
        call, self.pending = self.pending, None
        try:
            answer = ray.get(call)
        except RayError as error:
            return self._died(error)
        if not self.up:
            self._check(json.loads(answer))
            self.up = True
            return []
        return [message for news in answer for message in self.take(decode(news))]

    def _check(self, there: dict[str, Any]) -> None:
        """Refuse a node that has other packages or does not see the run directory."""
        here, settings = self._pool.here, self._pool.cluster.settings
        if not settings.allow_mixed:
            check_versions(here, there)
        if there["probe"] != here["probe"]:
            raise WorkerError(
                f"node {there['host']} does not see {self._pool.probe}: execution.shared needs a file system that all "
                "nodes have under the same path; set it to false"
            )

    def _died(self, error: RayError) -> list[Report | Failure]:
        failed = isinstance(error, RayTaskError | RuntimeEnvSetupError)
        if failed or (isinstance(error, RayActorError) and error.actor_init_failed):
            raise WorkerError(f"a worker failed: {last_line(str(error))}") from error
        _kill(self._actor)  # it may be alive, on a node that cannot be reached
        preempted = isinstance(error, RayActorError) and error.preempted
        death = classify_death(str(error), type(error).__name__, preempted=preempted)
        excused = not self.up or death not in ("process", "memory")
        if self.up:
            self._replaces, self._since = True, time.monotonic()
        how = describe_death(death, str(error))
        return self.replace_dead(how, excused=excused, memory=death == "memory")

    @override
    def stop(self) -> None:
        if self.up and self.pending is not None:  # its first news may be on its way
            self.began = self.began or bool(ray.wait([self.pending], timeout=0)[0])
        super().stop()

    @override
    def kill(self) -> None:
        self.pending, self._messages = None, []
        _kill(self._actor)
        if self._group is not None:
            release(self._group)


def _kill(actor: Any) -> None:
    with contextlib.suppress(RayError):
        ray.kill(actor)
