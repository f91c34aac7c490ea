"""Train pbtrl and its peers in turns on this machine, with equal envs, batches and nets, and print a table.

    python benchmarks/peers/run.py --minutes 5 --seeds 3       # all systems; hours; what is finished is skipped
    python benchmarks/peers/run.py sb3-ppo pbtrl-ppo           # some of them
    python benchmarks/peers/run.py cleanrl-ppo pbtrl-ppo --steps 1_000_000 --task Hopper    # equal env steps
    python benchmarks/peers/run.py --table                     # only the table, from the stored results

Run it with pbtrl's own interpreter (Python 3.11), on a machine that does nothing else. Each peer gets a virtual
environment of its own, in --venvs or $PEERS_VENVS. A result is one JSON line in --out, where also the logs are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
START_AND_SCORE = 600  # seconds that a run may take beyond its training
LONGEST_TRAINING = 4 * 3600  # seconds of a run that is to train a number of env steps
UNLIMITED = 10**9  # seconds or env steps that no run reaches
MUJOCO = "mujoco==4.0.0"

# CleanRL's release asks for Python < 3.10, which its PPO does not need. sample-factory and it need gymnasium < 1, where
# the newest tasks are v4. HalfCheetah is the same in both; Hopper and Walker2d pay 1 more for the last step of a fall.
# Ant and Humanoid have other observations and costs in v5, so they are not compared across the versions.
PACKAGES = {
    "cleanrl": ["gymnasium==0.29.1", "numpy==1.26.4", "torch", MUJOCO, "imageio", "tensorboard==2.21.0"],
    "sample-factory": ["sample-factory==2.1.1", "gymnasium==0.29.1", "numpy==1.26.4", "torch", MUJOCO, "imageio"],
    "sb3": ["stable-baselines3==2.9.2", "gymnasium[mujoco]==1.4.0", "torch", MUJOCO],
    "rllib": ["ray[rllib]==2.60.0", "gymnasium[mujoco]==1.2.2", "torch", MUJOCO],
}
IGNORING_REQUIREMENTS = {"cleanrl": ["cleanrl==1.2.0"]}

PPO = {"agent": "ppo", "num_envs": 16, "block_length": 128, "epochs": 10, "minibatches": 32, "population": 1}
A2C = {"agent": "a2c", "num_envs": 16, "block_length": 5, "population": 1}
IMPALA = {"agent": "impala", "num_envs": 16, "block_length": 50, "population": 1}
APPO = {"agent": "appo", "num_envs": 16, "block_length": 256, "epochs": 2, "minibatches": 4, "population": 1}


@dataclass(frozen=True)
class Arm:
    """A system: its script, its virtual environment (None: pbtrl's), and the settings that it shares with its match."""

    title: str
    script: str
    venv: str | None
    env_version: str
    settings: dict[str, Any]


V4, V5 = "v4", "v5"
COMPARABLE = ("HalfCheetah", "Hopper", "Walker2d")
ARMS = {
    "cleanrl-ppo": Arm("CleanRL PPO", "cleanrl_ppo.py", "cleanrl", V4, PPO),
    "sb3-ppo": Arm("Stable-Baselines3 PPO", "sb3.py", "sb3", V5, PPO),
    "pbtrl-ppo": Arm("pbtrl PPO", "ours.py", None, V5, PPO),
    "sb3-a2c": Arm("Stable-Baselines3 A2C", "sb3.py", "sb3", V5, A2C),
    "pbtrl-a2c": Arm("pbtrl A3C", "ours.py", None, V5, A2C),
    "rllib-impala": Arm("RLlib IMPALA", "rllib_impala.py", "rllib", V5, IMPALA),
    "pbtrl-impala": Arm("pbtrl IMPALA", "ours.py", None, V5, IMPALA),
    "sample-factory": Arm("sample-factory APPO", "sample_factory_appo.py", "sample-factory", V4, APPO),
    "pbtrl-appo": Arm("pbtrl PPO", "ours.py", None, V5, APPO),
    "sample-factory-pbt": Arm(
        "sample-factory APPO, PBT", "sample_factory_appo.py", "sample-factory", V4, APPO | {"population": 8}
    ),
    "pbtrl-pbt": Arm("pbtrl PPO, PBT", "ours.py", None, V5, APPO | {"population": 8}),
}


def interpreter(name: str | None, venvs: Path) -> Path:
    """Return the Python of an environment, which is made if it is missing or has other packages."""
    if name is None:
        return Path(sys.executable)
    folder, loose = venvs / name, IGNORING_REQUIREMENTS.get(name, [])
    python, mark, wanted = folder / "bin" / "python", folder / "installed.txt", "\n".join(PACKAGES[name] + loose)
    if not mark.is_file() or mark.read_text() != wanted:
        print(f"installing {name} into {folder}", flush=True)
        if not python.exists():
            venv.create(folder, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "-q"]
        subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), *PACKAGES[name]], check=True)
        if loose:
            subprocess.run([*pip, "--no-deps", "--ignore-requires-python", *loose], check=True)
        mark.write_text(wanted)
    return python


@dataclass(frozen=True)
class Budget:
    """What a run may use: seconds of training, or env steps per policy."""

    seconds: float
    steps: int

    @property
    def text(self) -> str:
        """What it is, with its unit."""
        return f"{self.seconds / 60:g} minutes" if self.steps == UNLIMITED else f"{self.steps:,} env steps"

    @property
    def longest(self) -> float:
        """Seconds after which a run has failed."""
        return (self.seconds if self.steps == UNLIMITED else LONGEST_TRAINING) + START_AND_SCORE


def measure(name: str, task: str, seed: int, budget: Budget, venvs: Path, log: Path) -> dict[str, Any]:
    """Run a system once and return its result.

    Raises:
        RuntimeError: it failed, printed no result or did not end; the message names the log.
    """
    arm = ARMS[name]
    python, env = interpreter(arm.venv, venvs), f"{task}-{arm.env_version}"
    job = {"env": env, "seed": seed, **asdict(budget), "slice_steps": 48_000, **arm.settings}
    with tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as folder, log.open("w") as output:
        environment = os.environ | {"HOME": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        if arm.venv is None:
            environment["PYTHONPATH"] = str(ROOT)
        process = subprocess.Popen(
            [python, HERE / arm.script, json.dumps(job)],
            cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(budget.longest)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith('{"version"')]
    if code != 0 or not lines:
        raise RuntimeError(f"{name}, seed {seed}: {'did not end' if code is None else f'exit {code}'}; see {log}")
    key = {"arm": name, "task": task, "seed": seed, "budget": budget.text}
    where = {"machine": f"{os.cpu_count()} cores of {processor()}", "date": time.strftime("%Y-%m-%d")}
    return key | {"env": env, **arm.settings} | where | json.loads(lines[-1])


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def processor() -> str:
    """Return the processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def table(results: list[dict[str, Any]]) -> str:
    """Format all results as Markdown: means over the runs, with the scores of the seeds."""
    header = (
        "system", "version", "env", "policies x envs x steps", "budget", "env steps/s", "env steps",
        "score, sampled actions", "most likely actions",
    )  # fmt: skip
    rows = [header, ("---",) * len(header)]
    for name, arm in ARMS.items():
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for result in sorted(results, key=lambda result: result["seed"]):
            if result["arm"] == name:
                groups.setdefault((result["env"], result["budget"]), []).append(result)
        for (env, budget), runs in groups.items():
            rows.append((
                arm.title,
                ", ".join(dict.fromkeys(run["version"] for run in runs)),
                env,
                " x ".join(str(arm.settings[key]) for key in ("population", "num_envs", "block_length")),
                budget,
                f"{statistics.mean(run['steps'] / run['seconds'] for run in runs):,.0f}",
                f"{statistics.mean(run['steps'] for run in runs):,.0f}",
                scores(runs, "returns"),
                scores(runs, "returns_deterministic"),
            ))  # fmt: skip
    machines = "; ".join(sorted({result["machine"] for result in results}))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"On {machines}, {' and '.join(sorted({result['date'] for result in results}))}:", "", *lines])


def scores(runs: list[dict[str, Any]], key: str) -> str:
    """Format the mean over the seeds, then the seeds' own scores if there are several."""
    means = [statistics.mean(run[key]) for run in runs]
    mean, *each = (f"{mean:.0f}" for mean in (statistics.mean(means), *means))
    return f"{mean}: {', '.join(each)}" if len(each) > 1 else mean


def read(results: Path) -> list[dict[str, Any]]:
    """Return the stored results."""
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []
    return [row for row in rows if "budget" in row]  # earlier versions stored minutes alone


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("arms", nargs="*", metavar="ARM", help=f"of {', '.join(ARMS)}; by default all")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training per run, without start-up and scoring")
    parser.add_argument("--steps", type=int, help="env steps per policy to train, in place of minutes")
    parser.add_argument("--task", default="HalfCheetah", help="MuJoCo task, without its version (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 1 on")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "peers")
    parser.add_argument("--venvs", type=Path, default=Path(os.environ.get("PEERS_VENVS", HERE / ".venvs")))
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    unknown = [name for name in options.arms if name not in ARMS]
    if unknown or min(options.minutes, options.seeds, 1 if options.steps is None else options.steps) <= 0:
        text = "--minutes, --steps and --seeds must be positive"
        parser.error(f"no such system: {', '.join(unknown)}" if unknown else text)
    versions = {ARMS[name].env_version for name in options.arms or ARMS}
    if options.task not in COMPARABLE and len(versions) > 1 and not options.table:
        parser.error(f"{options.task} differs between v4 and v5: choose arms of one version, such as sb3-ppo pbtrl-ppo")
    budget = Budget(UNLIMITED, options.steps) if options.steps else Budget(60 * options.minutes, UNLIMITED)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options.out.mkdir(parents=True, exist_ok=True)
    stored, failures = options.out / "results.jsonl", []
    for seed in () if options.table else range(1, options.seeds + 1):
        for name in options.arms or ARMS:
            done = {tuple(result[key] for key in ("arm", "task", "seed", "budget")) for result in read(stored)}
            if (name, options.task, seed, budget.text) in done:
                print(f"{name}, seed {seed}: finished before")
                continue
            print(f"{name}, seed {seed}: {budget.text}, since {time.strftime('%H:%M:%S')}", flush=True)
            log = options.out / f"{name}-{options.task}-{budget.text.replace(' ', '-')}-seed{seed}.log"
            try:
                result = measure(name, options.task, seed, budget, options.venvs.resolve(), log)
            except (RuntimeError, subprocess.CalledProcessError) as error:
                failures.append(str(error))
                print(f"failed: {error}", flush=True)
                continue
            with stored.open("a") as file:
                file.write(json.dumps(result) + "\n")
    results = read(stored)
    print("\n" + table(results) if results else "no results yet")
    if failures:
        sys.exit(3)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues")
