"""The command line: a thin layer over the modules that do the work. Torch is imported by the commands that need it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pbtrl import __version__

USAGE, FAILED, CORRUPT = 2, 3, 4


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 2 usage or config, 3 failed, 4 corrupt or missing data."""
    arguments = _parsed(argv)
    from pbtrl.config import ConfigError
    from pbtrl.journal import JournalError
    from pbtrl.lock import RunError
    from pbtrl.snapshots import SnapshotError

    try:
        code: int = arguments.command(arguments)
    except (ConfigError, RunError) as error:
        print(error, file=sys.stderr)
        return USAGE
    except (JournalError, SnapshotError) as error:
        print(error, file=sys.stderr)
        return CORRUPT
    except BrokenPipeError:
        return 0
    return code


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments; overrides may stand among the options, which argparse alone does not allow."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if hasattr(arguments, "overrides") and all("=" in r and not r.startswith("-") for r in rest):
        arguments.overrides += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pbtrl", description="Deep RL with population based training built in.")
    parser.add_argument("--version", action="version", version=f"pbtrl {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    train = _add(commands, "train", _train, "train a population from a config and name its best member")
    train.add_argument("config", help="a YAML file, or the name of a shipped config (quickstart, pong, ...)")
    train.add_argument("overrides", nargs="*", metavar="a.b=value", help="settings that replace the file's")
    train.add_argument("--name", help="of the run directory (default: the config's, or env and time)")
    exists = train.add_mutually_exclusive_group()
    exists.add_argument("--if-exists", choices=["error", "resume", "overwrite"], default="error")
    exists.add_argument("--suffix", action="store_const", const="suffix", dest="if_exists", help="name-2, name-3, ...")
    exists.add_argument("--overwrite", action="store_const", const="overwrite", dest="if_exists")
    train.add_argument("--dry-run", action="store_true", help="check everything, print the resolved config, stop")
    _add_progress(train)

    resume = _add(commands, "resume", _resume, "go on with a stopped run")
    _add_run(resume)
    resume.add_argument("overrides", nargs="*", metavar="budget.x=value", help="a longer budget")
    _add_progress(resume)

    evaluate = _add(commands, "eval", _eval, "play fresh episodes, raw returns")
    _add_run(evaluate)
    evaluate.add_argument("--member", default="best", help="best, all, or an id such as m03 (default: best)")
    evaluate.add_argument("--episodes", type=_positive, default=30)
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--deterministic", action="store_true", help="the policy's mode instead of a sample")
    evaluate.add_argument("--json", action="store_true")

    status = _add(commands, "status", _status, "where a run and its members stand")
    _add_run(status)
    status.add_argument("--json", action="store_true")

    listing = _add(commands, "list", _list, "all runs")
    _add_root(listing)
    listing.add_argument("--json", action="store_true")

    lineage = _add(commands, "lineage", _lineage, "who copied whom, when and why")
    _add_run(lineage)
    lineage.add_argument("--json", action="store_true")

    tensorboard = _add(commands, "tb", _tensorboard, "TensorBoard for a run, on localhost")
    _add_run(tensorboard)
    tensorboard.add_argument("--port", type=int, default=6006)

    bench = _add(commands, "bench", _bench, "how fast a config trains, against its simulator alone")
    bench.add_argument("config")
    bench.add_argument("overrides", nargs="*", metavar="a.b=value")
    bench.add_argument("--seconds", type=float, default=20.0, help="per measurement (default: 20)")
    bench.add_argument("--json", action="store_true")

    doctor = _add(commands, "doctor", _doctor, "what this machine has, and whether it works")
    doctor.add_argument("--json", action="store_true")

    config = _add(commands, "config", _config, "look at configs")
    config.add_argument("what", choices=["show", "schema"])
    config.add_argument("config", nargs="?")
    config.add_argument("overrides", nargs="*", metavar="a.b=value")
    return parser


def _add(commands: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text.capitalize() + ".")
    parser.set_defaults(command=function)
    return parser


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs lie (default: runs)")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="`last`, a name, a unique prefix of one, or a path")
    _add_root(parser)


def _add_progress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--progress", choices=["auto", "live", "plain", "json", "none"], default="auto")
    if "--runs" not in parser._option_string_actions:
        _add_root(parser)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _train(a: argparse.Namespace) -> int:
    from pbtrl.config import load, locate

    config = load(a.config, a.overrides)
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    from pbtrl import build, session

    config = build.prepared(config)
    if a.dry_run:
        print(config.dump_yaml(), end="")
        return 0
    return session.start(
        config, locate(a.config).read_text(), root=a.runs, name=a.name, if_exists=a.if_exists, mode=a.progress,
        command=sys.argv,
    )  # fmt: skip


def _resume(a: argparse.Namespace) -> int:
    from pbtrl import runs, session

    return session.resume(runs.find(a.run, a.runs), mode=a.progress, command=sys.argv, overrides=a.overrides)


def _eval(a: argparse.Namespace) -> int:
    from pbtrl import evaluation, runs
    from pbtrl.config import load
    from pbtrl.header import population
    from pbtrl.journal import read
    from pbtrl.lock import RunError

    run = runs.find(a.run, a.runs)
    config = load(run / "config.resolved.yaml")
    members = population(read(run / "journal.jsonl")).members
    if a.member == "best":
        if not (run / "best.json").exists():
            raise RunError(f"{run} has no best member yet: name one with --member, or use --member all")
        chosen = [json.loads((run / "best.json").read_text())["member"]]
    else:
        chosen = list(members) if a.member == "all" else [a.member]
    if unknown := [m for m in chosen if m not in members]:
        raise RunError(f"no member {unknown[0]!r} in {run}: there are {', '.join(members)}")
    known = [members[m] for m in chosen if members[m].snapshot]
    if not known:
        raise RunError(f"{run}: no snapshot yet of {', '.join(chosen)}")
    results = evaluation.evaluate(
        config, run, known, episodes=a.episodes, seed=a.seed, deterministic=a.deterministic
    )
    evaluation.write(run, results)
    if a.json:
        print(json.dumps(results if a.member == "all" else results[0]))
        return 0
    for r in results:
        low, high = r["ci95"] or (float("nan"), float("nan"))
        print(
            f"{r['member']}  {r['snapshot']}  {r['episodes']} episodes  return {r['return_mean']:.1f} +/- "
            f"{r['return_std']:.1f}  95 % [{low:.1f}, {high:.1f}]  min {r['return_min']:.1f}  "
            f"max {r['return_max']:.1f}  length {r['length_mean']:.0f}  "
            f"{'deterministic' if a.deterministic else 'stochastic'}, seed {a.seed}"
        )
    return 0


def _status(a: argparse.Namespace) -> int:
    from pbtrl import runs
    from pbtrl.figures import clock, count, score, size, value

    found = runs.status(runs.find(a.run, a.runs))
    if a.json:
        print(json.dumps(found))
        return 0
    done = 100 * found["env_steps"] / max(1, found["steps_budget"])
    print(
        f"{found['name']}: {found['state']}, {count(found['env_steps'])} of {count(found['steps_budget'])} "
        f"{found['unit'].replace('_', ' ')} ({done:.0f} %), last sign of life {clock(found['heartbeat_age'])} ago, "
        f"{size(found['bytes'])} in {found['path']}"
    )
    for m in sorted(found["members"], key=lambda m: -1e30 if m["fitness"] is None else m["fitness"], reverse=True):
        values = "  ".join(f"{k} {value(v)}" for k, v in m["hyperparameters"].items())
        print(f"  {m['id']}  {score(m['fitness']):>8}  g{m['generation']:<3} {count(m['env_steps']):>6}  {values}")
    return 0


def _list(a: argparse.Namespace) -> int:
    from pbtrl import runs
    from pbtrl.figures import count, score

    found = runs.listing(a.runs)
    if a.json:
        print(json.dumps(found))
        return 0
    for r in found:
        best = r.get("best") or {}
        print(
            f"{r['name']:32}  {r['state']:9}  {count(r.get('env_steps', 0)):>7} of "
            f"{count(r.get('steps_budget', 0)):>7}  best {score(best.get('fitness')):>8} {best.get('member', '')}"
        )
    return 0


def _lineage(a: argparse.Namespace) -> int:
    from pbtrl import lineage, runs
    from pbtrl.figures import score
    from pbtrl.journal import read

    copies = lineage.copies(read(runs.find(a.run, a.runs) / "journal.jsonl"))
    if a.json:
        print(json.dumps({"copies": copies}))
        return 0
    for c in copies:
        print(
            f"{c['time']:8.0f} s  {c['env_steps']:>10,} env steps  {c['member']} <- {c['donor']}  "
            f"fitness {score(c['fitness_before'])} -> {score(c['fitness_after'])}"
        )
    print(f"{len(copies)} copies")
    return 0


def _tensorboard(a: argparse.Namespace) -> int:
    import os

    from pbtrl import runs

    logs = runs.find(a.run, a.runs) / "tb"
    command = ["-m", "tensorboard.main", "--logdir", str(logs), "--host", "localhost", "--port", str(a.port)]
    print(f"TensorBoard of {logs} on http://localhost:{a.port} (Ctrl-C ends it)", flush=True)
    os.execv(sys.executable, [sys.executable, *command])


def _bench(a: argparse.Namespace) -> int:
    from pbtrl.config import load

    config = load(a.config, a.overrides)
    from pbtrl import bench, build

    found = bench.measure(build.prepared(config), a.seconds)
    print(json.dumps(found) if a.json else bench.text(found))
    return 0


def _doctor(a: argparse.Namespace) -> int:
    from pbtrl import doctor

    checks = doctor.examine()
    print(json.dumps(checks) if a.json else doctor.text(checks))
    return 0 if all(c["ok"] for c in checks) else FAILED


def _config(a: argparse.Namespace) -> int:
    from pbtrl.config import json_schema, load, shipped

    if a.what == "schema":
        print(json.dumps(json_schema(), indent=2))
        return 0
    if a.config is None:
        print("\n".join(shipped()))
        return 0
    print(load(a.config, a.overrides).dump_yaml(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
