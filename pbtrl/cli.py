"""The command line: a thin layer over the modules that do the work, each imported by the commands that need it."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pbtrl import __version__
from pbtrl.config.load import to_yaml
from pbtrl.system import streams
from pbtrl.system.streams import tell
from pbtrl.system.strict_json import to_json

USAGE, FAILED, CORRUPT, FULL, INTERRUPTED = 2, 3, 4, 75, 130

FIRST_STEPS = """first steps:
  pbtrl train quickstart          eight HalfCheetahs, three minutes
  pbtrl tb last                   their curves, in a browser
  pbtrl eval last                 the best one, on fresh episodes
  pbtrl config show reference     every setting; `pbtrl COMMAND --help` for every option"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    0 done, 2 usage or config, 3 failed, 4 corrupt or missing data, 75 disk full, 129, 130 and 143 stopped by a signal.
    """
    streams.reopen()
    try:
        arguments = _parsed(argv)
        code: int = arguments.command(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        known = _exit_code(error)
        if known is None:
            raise
        tell(str(error), sys.stderr)
        return known
    finally:
        streams.flush()
    return code


def _exit_code(error: Exception) -> int | None:
    """Of a mistake whose text says it all; None for a bug, which keeps its traceback."""
    from pbtrl.errors import ConfigError, DamagedError, DiskFullError, RunError

    if isinstance(error, DiskFullError):
        return FULL
    if isinstance(error, DamagedError):
        return CORRUPT
    if isinstance(error, ConfigError | RunError):
        return USAGE
    from pbtrl.envs import EnvError
    from pbtrl.errors import WorkerError

    return FAILED if isinstance(error, EnvError | WorkerError) else None


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments; overrides may stand among the options, which argparse alone does not allow."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if "command" not in arguments:
        parser.print_help()
        parser.exit(USAGE)
    if hasattr(arguments, "overrides") and all("=" in r and not r.startswith("-") for r in rest):
        arguments.overrides = [*arguments.overrides, *rest]
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pbtrl",
        description="Deep RL with population based training built in.",
        epilog=FIRST_STEPS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pbtrl {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    train = _add(commands, "train", _train, "train a population from a config and name its best member")
    _add_config(train)
    train.add_argument("--name", help="of the run directory (default: the config's, or env and time)")
    exists = train.add_mutually_exclusive_group()
    exists.add_argument(
        "--if-exists", choices=["error", "resume", "overwrite"], default="error",
        help="what to do with a run of that name (default: error); `resume` begins it where there is none",
    )  # fmt: skip
    exists.add_argument(
        "--suffix", action="store_const", const="suffix", dest="if_exists", help="take NAME-2, NAME-3, ..."
    )
    exists.add_argument(
        "--overwrite", action="store_const", const="overwrite", dest="if_exists", help="delete the old run first"
    )
    train.add_argument("--dry-run", action="store_true", help="check everything, print the resolved config, stop")
    _add_root(train)
    _add_progress(train)

    resume = _add(commands, "resume", _resume, "go on with a stopped run")
    _add_run(resume)
    resume.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="a.b=value",
        help="a longer budget: budget.env_steps_per_member=2e6",
    )
    _add_trust(resume)
    _add_progress(resume)

    evaluate = _add(commands, "eval", _eval, "play fresh episodes, raw returns")
    _add_run(evaluate)
    evaluate.add_argument("--member", default="best", help="best, all, or an id such as m03 (default: best)")
    evaluate.add_argument(
        "--episodes", type=_whole(1, 1_000_000), default=30, metavar="N", help="per member (default: 30)"
    )
    evaluate.add_argument(
        "--seed", type=_whole(0, 2**64 - 1), default=0, metavar="S", help="of envs and actions (default: 0)"
    )
    evaluate.add_argument("--deterministic", action="store_true", help="the policy's mode instead of a sample")
    _add_trust(evaluate)
    _add_json(evaluate)

    status = _add(commands, "status", _status, "where a run and its members stand")
    _add_run(status)
    _add_json(status)

    listing = _add(commands, "list", _list, "all runs")
    _add_root(listing)
    _add_json(listing)

    verify = _add(commands, "verify", _verify, "hash every snapshot again, and check the journal")
    _add_run(verify)
    verify.add_argument("--digest", action="store_true", help="print the SHA-256 of the canonical journal alone")
    verify.add_argument("--repair", action="store_true", help="put what is damaged into quarantine, delete leftovers")
    _add_json(verify)

    lineage = _add(commands, "lineage", _lineage, "who copied whom, when and why")
    _add_run(lineage)
    _add_json(lineage)

    report = _add(commands, "report", _report, "a run on one page of HTML, with its pictures")
    _add_run(report)
    report.add_argument(
        "--only", choices=["training", "lineage", "timeline", "speed"], action="append", metavar="PICTURE",
        help="training, lineage, timeline or speed; may be given several times (default: all)",
    )  # fmt: skip
    report.add_argument("--format", choices=["svg", "png"], default="svg", help="of the pictures (default: svg)")

    tensorboard = _add(commands, "tb", _tensorboard, "TensorBoard for a run, on localhost")
    _add_run(tensorboard)
    tensorboard.add_argument("--expose", action="store_true", help="to other machines too, which is not safe")
    tensorboard.add_argument("--port", type=_whole(0, 65535), help="(default: the first free one from 6006)")

    bench = _add(commands, "bench", _bench, "how fast a config trains, against its simulator alone")
    _add_config(bench)
    bench.add_argument(
        "--seconds",
        type=_seconds,
        default=20.0,
        metavar="S",
        help="per measurement, of which there are 3 to 6 (default: 20)",
    )
    _add_json(bench)

    doctor = _add(commands, "doctor", _doctor, "what this machine has, and whether a config will work on it")
    _add_config(doctor, nargs="?")
    _add_root(doctor)
    _add_json(doctor)

    config = _add(commands, "config", _config, "look at configs")
    config.add_argument("what", choices=["show", "schema"], help="a resolved config, or the JSON schema of all")
    _add_config(config, nargs="?")
    return parser


def _add(commands: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    described = text[0].upper() + text[1:] + "."
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=described)
    parser.set_defaults(command=function)
    return parser


def _add_config(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    parser.add_argument(
        "config", nargs=nargs, help="a YAML file, or the name of a shipped config (`pbtrl config show`)"
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="a.b=value", help="settings that replace the file's"
    )


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs", type=_path, default=Path("runs"), metavar="DIR", help="where runs lie (default: runs)"
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="`last`, a name, a unique prefix of one, or a path")
    _add_root(parser)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs")


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-imports", action="store_true", help="import the env's own module, which the run directory names"
    )


def _add_progress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--progress", choices=["auto", "live", "plain", "json", "none"], default="auto",
        help="a live table, plain lines or JSON lines (default: auto, live on a terminal and else plain)",
    )  # fmt: skip
    parser.add_argument("--wide", action="store_true", help="a column for every hyperparameter, not the first three")


def _path(text: str) -> Path:
    if "\0" in text:
        raise argparse.ArgumentTypeError("no path has a zero byte in it")
    return Path(os.path.expanduser(text))


def _whole(low: int, high: int) -> Any:
    def number(text: str) -> int:
        if not re.fullmatch("[0-9]{1,20}", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high}, not {text[:40]}")
        return int(text)

    return number


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 86400:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, not {text[:40]}")
    return number


def _train(a: argparse.Namespace) -> int:
    from pbtrl.config.load import checked, read
    from pbtrl.storage.run_directory import check_free

    source = read(a.config, a.overrides)
    config = checked(source)

    if not a.dry_run and (asked := config.name if a.name is None else a.name) is not None:
        check_free(a.runs, asked, a.if_exists)
    from pbtrl import session
    from pbtrl.build import factory

    if a.dry_run:
        tell(to_yaml(factory.prepare(config, source)).rstrip())
        return 0
    return session.start(
        config, source, root=a.runs, name=a.name, if_exists=a.if_exists,
        mode=a.progress, command=sys.argv, wide=a.wide,
    )  # fmt: skip


def _resume(a: argparse.Namespace) -> int:
    from pbtrl.storage.run_lookup import find

    run = find(a.run, a.runs)
    from pbtrl import session

    return session.resume(
        run, mode=a.progress, command=sys.argv, overrides=a.overrides, wide=a.wide, trusted=a.trust_imports
    )


def _eval(a: argparse.Namespace) -> int:
    from pbtrl.errors import SnapshotError
    from pbtrl.reporting import tables
    from pbtrl.storage.best_member import save_evaluation, snapshots_to_evaluate
    from pbtrl.storage.run_directory import check_links
    from pbtrl.storage.run_lookup import find
    from pbtrl.storage.stored_config import check_imports, stored_config
    from pbtrl.training import scoring

    run = find(a.run, a.runs)
    check_links(run)
    chosen = snapshots_to_evaluate(run, a.member)
    config = stored_config(run)
    check_imports(run, config, allowed=a.trust_imports)
    play = partial(scoring.evaluate, config, run, episodes=a.episodes, seed=a.seed, deterministic=a.deterministic)
    try:
        results = play(chosen)
    except SnapshotError:
        if (now := snapshots_to_evaluate(run, a.member)) == chosen:
            raise
        results = play(now)  # it trains, and what was chosen first has gone
    try:
        save_evaluation(run, results)
    except OSError as error:
        tell(f"warning: not kept in {run / 'eval'}: {error.strerror or error}", sys.stderr)
    shown = results if a.member == "all" else results[0]
    tell(to_json(shown) if a.json else tables.evaluations(results))
    if unscored := scoring.unscored(config, results):
        tell(unscored, sys.stderr)
        return FAILED
    return 0


def _status(a: argparse.Namespace) -> int:
    from pbtrl.reporting import tables
    from pbtrl.storage.references import cli_reference
    from pbtrl.storage.run_info import read_run_info
    from pbtrl.storage.run_lookup import find
    from pbtrl.storage.run_status import corruption_as_error, status

    run = find(a.run, a.runs)
    with corruption_as_error(run):
        found = status(run)
        reason = read_run_info(run).get("reason", "") if found["state"] == "crashed" else ""
        tell(to_json(found) if a.json else tables.status(found, cli_reference(run), reason))
    return 0


def _list(a: argparse.Namespace) -> int:
    from pbtrl.reporting import tables
    from pbtrl.storage.references import root_option
    from pbtrl.storage.run_status import listing

    found = listing(a.runs)
    if a.json:
        tell(to_json(found))
    elif found:
        tell(tables.listing(found))
    else:
        tell(f"no runs in {a.runs}; begin one with: pbtrl train quickstart{root_option(a.runs)}")
    return 0


def _verify(a: argparse.Namespace) -> int:
    from pbtrl import verify
    from pbtrl.errors import DamagedError
    from pbtrl.storage.run_lookup import find

    run = find(a.run, a.runs)
    if a.repair:
        for line in verify.repair(run):
            tell(line, sys.stderr)
    found = verify.examine(run)
    if a.digest and found["digest"] is None:
        raise DamagedError(f"{run}: its journal cannot be read, so it has no digest")
    tell(found["digest"] if a.digest else to_json(found) if a.json else verify.text(found))
    return 0 if found["ok"] else CORRUPT


def _lineage(a: argparse.Namespace) -> int:
    from pbtrl.reporting import lineage, tables
    from pbtrl.storage.run_lookup import find
    from pbtrl.storage.run_status import corruption_as_error, load_run

    run = find(a.run, a.runs)
    header, lines, _ = load_run(run)
    with corruption_as_error(run):
        copies = lineage.copies(lines)
        tell(to_json({"copies": copies}) if a.json else tables.copies(copies, header.steps))
    return 0


def _report(a: argparse.Namespace) -> int:
    from pbtrl.reporting import html_report
    from pbtrl.storage.run_lookup import find

    run = find(a.run, a.runs)
    for path in html_report.write_report(run, only=a.only, form=a.format):
        tell(str(path))
    return 0


def _tensorboard(a: argparse.Namespace) -> int:
    from pbtrl.errors import DamagedError
    from pbtrl.reporting import tensorboard_server
    from pbtrl.storage.run_lookup import find

    logs = find(a.run, a.runs) / "tb"
    if not logs.is_dir():
        raise DamagedError(f"there is no {logs}: the run never began")
    return tensorboard_server.serve(logs, a.port, expose=a.expose)


def _bench(a: argparse.Namespace) -> int:
    from pbtrl.config.load import checked, read

    source = read(a.config, a.overrides)
    config = checked(source)
    from pbtrl import bench
    from pbtrl.build import factory

    found = bench.measure(factory.prepare(config, source), a.seconds)
    tell(to_json(found) if a.json else bench.text(found))
    return 0


def _doctor(a: argparse.Namespace) -> int:
    from pbtrl.config.load import checked, read

    source = read(a.config, a.overrides) if a.config else None
    config = checked(source) if source else None
    from pbtrl import doctor
    from pbtrl.build import factory

    checks = doctor.examine(a.runs, config and factory.prepare(config, source))
    tell(to_json(checks) if a.json else doctor.text(checks))
    return 0 if all(c["ok"] for c in checks) else FAILED


def _config(a: argparse.Namespace) -> int:
    from pbtrl.config.load import json_schema, load, shipped

    if a.what == "schema":
        tell(to_json(json_schema(), indent=2))
    elif a.config is None:
        tell("\n".join(shipped()))
    else:
        tell(to_yaml(load(a.config, a.overrides)).rstrip())
    return 0
