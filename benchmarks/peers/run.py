"""Train pbtrl and its peers in turns on this machine, with equal envs, batches and nets, and print a table.

    python benchmarks/peers/run.py --minutes 5 --seeds 3       # all systems; hours; what is finished is skipped
    python benchmarks/peers/run.py sb3-ppo pbtrl-ppo           # some of them
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
START_AND_SCORE = 600  # seconds that a run may take beyond its training
MUJOCO = "mujoco==4.0.0"

# CleanRL's release asks for Python < 3.10, which its PPO does not need. sample-factory and it need gymnasium < 1, where
# the newest HalfCheetah is v4: the same dynamics and rewards as v5.
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
    env: str
    settings: dict[str, Any]


V4, V5 = "HalfCheetah-v4", "HalfCheetah-v5"
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


def measure(name: str, arm: Arm, seed: int, minutes: float, venvs: Path, log: Path) -> dict[str, Any]:
    """Run a system once and return its result.

    Raises:
        RuntimeError: it failed, printed no result or did not end; the message names the log.
    """
    python = interpreter(arm.venv, venvs)
    job = {"env": arm.env, "seed": seed, "seconds": 60 * minutes, "slice_steps": 48_000, **arm.settings}
    with tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as folder, log.open("w") as output:
        environment = os.environ | {"HOME": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        if arm.venv is None:
            environment["PYTHONPATH"] = str(ROOT)
        process = subprocess.Popen(
            [python, HERE / arm.script, json.dumps(job)],
            cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(60 * minutes + START_AND_SCORE)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith('{"version"')]
    if code != 0 or not lines:
        raise RuntimeError(f"{name}, seed {seed}: {'did not end' if code is None else f'exit {code}'}; see {log}")
    key = {"arm": name, "seed": seed, "minutes": minutes}
    where = {"machine": f"{os.cpu_count()} cores of {processor()}", "date": time.strftime("%Y-%m-%d")}
    return key | {"env": arm.env, **arm.settings} | where | json.loads(lines[-1])


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
        "system", "version", "env", "policies x envs x steps", "minutes", "env steps/s", "env steps",
        "score, sampled actions", "most likely actions",
    )  # fmt: skip
    rows = [header, ("---",) * len(header)]
    for name, arm in ARMS.items():
        for minutes in sorted({result["minutes"] for result in results if result["arm"] == name}):
            runs = [result for result in results if result["arm"] == name and result["minutes"] == minutes]
            runs.sort(key=lambda result: result["seed"])
            rows.append((
                arm.title,
                ", ".join(dict.fromkeys(run["version"] for run in runs)),
                arm.env,
                " x ".join(str(arm.settings[key]) for key in ("population", "num_envs", "block_length")),
                f"{minutes:g}",
                f"{statistics.mean(run['steps'] / run['seconds'] for run in runs):,.0f}",
                f"{statistics.mean(run['steps'] for run in runs):,.0f}",
                scores(runs, "returns"),
                scores(runs, "returns_deterministic"),
            ))  # fmt: skip
    machines = "; ".join(sorted({result["machine"] for result in results}))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"On {machines}, {' and '.join(sorted({result['date'] for result in results}))}:", "", *lines])


def scores(runs: list[dict[str, Any]], key: str) -> str:
    """Format the mean over the seeds, then the seeds' own scores."""
    means = [statistics.mean(run[key]) for run in runs]
    return f"{statistics.mean(means):.0f}: {', '.join(f'{mean:.0f}' for mean in means)}"


def read(results: Path) -> list[dict[str, Any]]:
    """Return the stored results."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("arms", nargs="*", metavar="ARM", help=f"of {', '.join(ARMS)}; by default all")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training per run, without start-up and scoring")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 1 on")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "peers")
    parser.add_argument("--venvs", type=Path, default=Path(os.environ.get("PEERS_VENVS", HERE / ".venvs")))
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    unknown = [name for name in options.arms if name not in ARMS]
    if unknown or options.minutes <= 0 or options.seeds < 1:
        parser.error(f"no such system: {', '.join(unknown)}" if unknown else "--minutes and --seeds must be positive")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options.out.mkdir(parents=True, exist_ok=True)
    stored, failures = options.out / "results.jsonl", []
    for seed in () if options.table else range(1, options.seeds + 1):
        for name in options.arms or ARMS:
            done = {(result["arm"], result["seed"], result["minutes"]) for result in read(stored)}
            if (name, seed, options.minutes) in done:
                print(f"{name}, seed {seed}: finished before")
                continue
            print(f"{name}, seed {seed}: {options.minutes:g} minutes, since {time.strftime('%H:%M:%S')}", flush=True)
            log = options.out / f"{name}-{options.minutes:g}min-seed{seed}.log"
            try:
                result = measure(name, ARMS[name], seed, options.minutes, options.venvs.resolve(), log)
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
