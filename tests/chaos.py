"""Soak test: one HalfCheetah run under random faults; in the end `verify` must be clean and all budgets exact.

    python -m tests.chaos [--minutes 10] [--seed 0]       (`make chaos`)

Every few seconds a fault is injected: a worker or the controller is killed or gets a stop signal, a worker is
suspended, a worker's disk is full, or a file of a snapshot changes between sessions. The run is resumed each time.
Prints a table of the faults and their cost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

CONFIG = """\
name: chaos
seed: 1
env: {id: HalfCheetah-v5, num_envs: 8}
agent: {name: impala, optimizer: adam, reduction: mean, advantages: normalize, epochs: 2, block_length: 20}
population: {size: 4}
budget: {env_steps_per_member: 100_000_000}
hparams:
  learning_rate: {prior: log_uniform, low: 1e-4, high: 2e-3}
  unroll_length: {prior: int_uniform, low: 5, high: 20}
fitness: {window_episodes: 8, min_episodes: 8}
strategy: {ready: {slice_steps: 16_000}}
final: {candidates: 1, selection_episodes: 2, episodes: 2}
"""
MARK = "PBTRL_CHAOS"


class Soak:
    """One run under faults."""

    def __init__(self, where: Path, seed: int) -> None:
        self.where, self.rng = where, random.Random(seed)
        self.run, self.mark = where / "runs/chaos", f"{os.getpid()}-{seed}"
        self.faults: Counter[str] = Counter()
        self.codes: Counter[int] = Counter()
        self.recovery: list[float] = []
        (where / "chaos.yaml").write_text(CONFIG)

    def pbtrl(self, *argv: str) -> subprocess.Popen[str]:
        """A command of ours, whose descendants carry a mark."""
        env = {**os.environ, MARK: self.mark}
        command = [sys.executable, "-m", "pbtrl", *argv]
        return subprocess.Popen(command, cwd=self.where, env=env, text=True, stdout=subprocess.PIPE, stderr=sys.stderr)

    def begin(self, *argv: str) -> subprocess.Popen[str]:
        """A session, up to the first line that it adds to the journal."""
        before, since = self.lines(), time.monotonic()
        process = self.pbtrl(*argv, "--progress", "none")
        while self.lines() == before and process.poll() is None:
            time.sleep(0.05)
        self.recovery.append(time.monotonic() - since)
        return process

    def lines(self) -> int:
        journal = self.run / "journal.jsonl"
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    def soak(self, minutes: float) -> None:
        """Sessions until the time is over."""
        until = time.monotonic() + 60 * minutes
        while time.monotonic() < until:
            process = self.begin("train", "chaos.yaml", "--if-exists", "resume")
            while process.poll() is None and time.monotonic() < until:
                time.sleep(self.rng.uniform(2.0, 8.0))
                self.strike(process.pid)
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            self.codes[process.wait()] += 1
            if self.rng.random() < 0.3:
                self.damage()

    def strike(self, controller: int) -> None:
        """One fault of the processes."""
        workers = [pid for pid in marked(self.mark) if pid != controller and parent(pid) == controller]
        kinds = ["worker killed", "controller killed", "controller told to stop", "worker asleep", "disk full"]
        kind = self.rng.choices(kinds, weights=[5, 2, 1, 3, 1])[0]
        try:
            if kind.startswith("controller"):
                os.kill(controller, signal.SIGKILL if kind == "controller killed" else signal.SIGTERM)
            elif workers:
                self.strike_worker(kind, self.rng.choice(workers))
            else:
                return
        except ProcessLookupError:
            return
        self.faults[kind] += 1

    def strike_worker(self, kind: str, worker: int) -> None:
        if kind == "worker killed":
            os.kill(worker, signal.SIGKILL)
        elif kind == "worker asleep":
            os.kill(worker, signal.SIGSTOP)
            time.sleep(self.rng.uniform(0.5, 5.0))
            os.kill(worker, signal.SIGCONT)
        else:
            _, hard = resource.prlimit(worker, resource.RLIMIT_FSIZE)
            resource.prlimit(worker, resource.RLIMIT_FSIZE, (1_000, hard))

    def damage(self) -> None:
        """Flip a byte of a snapshot."""
        files = sorted(self.run.glob("members/*/snapshots/[0-9]*/*"))
        if files:
            path = self.rng.choice(files)
            data = bytearray(path.read_bytes())
            data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
            path.write_bytes(data)
            self.faults["snapshot damaged"] += 1

    def finish(self) -> int:
        """Resume to the end of a budget that is near; returns it."""
        steps = [m["env_steps"] for m in self.status()["members"]]
        budget = (max(steps) // 16_000 + 2) * 16_000
        config = self.run / "config.resolved.yaml"
        config.write_text(
            config.read_text().replace("env_steps_per_member: 100000000", f"env_steps_per_member: {budget}")
        )
        process = self.pbtrl("resume", "chaos", "--progress", "none")
        self.codes[process.wait()] += 1
        return budget

    def status(self) -> dict:  # type: ignore[type-arg]
        out, _ = self.pbtrl("status", "chaos", "--json").communicate()
        result: dict = json.loads(out)  # type: ignore[type-arg]
        return result


def steps_again(run: Path) -> int:
    """Env steps that were trained and lost, from the metrics (a line every 2 s) and remade slices."""
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    slices = {a["id"]: a for line in lines if line["kind"] == "decision" for a in line["assignments"]}
    remade = [slices[line["snapshot"]] for line in lines if line["kind"] == "remade"]
    again: int = sum(a["stop"] - a["start"] for a in remade)
    for path in run.glob("members/*/metrics.jsonl"):
        last: dict[str, int] = {}
        for line in map(json.loads, path.read_text().splitlines()):
            name, step = line["assignment"], line["step"]
            again += max(0, last.get(name, 0) - slices[name]["start"]) if step <= last.get(name, 0) else 0
            last[name] = step
    return again


def marked(mark: str) -> list[int]:
    """Living processes that carry a mark."""
    result = []
    for folder in Path("/proc").iterdir():
        try:
            alive = folder.name.isdigit() and (folder / "stat").read_text().rsplit(") ", 1)[1][0] not in "ZX"
            if alive and f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                result.append(int(folder.name))
        except OSError:
            continue
    return result


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[1])
    except OSError:
        return 0


def main() -> int:
    """Returns 0 if everything held."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), asked.seed)
        soak.soak(asked.minutes)
        soak.pbtrl("verify", "chaos", "--repair").wait()
        budget = soak.finish()
        time.sleep(2.0)
        orphans = marked(soak.mark)
        out, _ = soak.pbtrl("verify", "chaos", "--json").communicate()
        verified, members = json.loads(out), soak.status()["members"]
        kinds = Counter(json.loads(line)["kind"] for line in (soak.run / "journal.jsonl").read_text().splitlines())
        exact = all(m["env_steps"] == budget for m in members)
        mean = sum(soak.recovery) / len(soak.recovery)
        total, again = sum(m["env_steps"] for m in members), steps_again(soak.run)
        rows = {
            "faults": f"{soak.faults.total()} ({', '.join(f'{n} {kind}' for kind, n in soak.faults.items())})",
            "sessions, by exit code": ", ".join(f"{n} with {code}" for code, n in soak.codes.items()),
            "slices that failed and were run again": kinds["failure"],
            "snapshots made again": kinds["remade"],
            "env steps done again for these": f"{again:,}, {again / total:.1%} of what was learned from",
            "seconds until a run writes its journal again": f"{mean:.1f} on average, {max(soak.recovery):.1f} at most",
            "env steps": f"{total:,}, the budget {'exactly' if exact else 'NOT met'}",
            "processes left behind": len(orphans),
            "verify": "clean" if not verified["findings"] else verified["findings"],
        }
        for name, text in rows.items():
            print(f"{name:<46} {text}")
    return 0 if exact and not verified["findings"] and not orphans else 1


if __name__ == "__main__":
    sys.exit(main())
