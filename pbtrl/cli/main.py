"""Entry point of the command line: the parser of all commands, and the exit codes of errors."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from typing_extensions import override

import pbtrl
from pbtrl.cli.arguments import (
    add_command,
    add_config,
    add_json,
    add_member,
    add_progress,
    add_root,
    add_run,
    add_trust,
    integer_between,
    parse_seconds,
)
from pbtrl.cli.compare import add_compare
from pbtrl.cli.completion import add_completion, answer
from pbtrl.cli.exit_codes import CORRUPT, FAILED, FULL, INTERRUPTED, USAGE
from pbtrl.cli.export import add_export
from pbtrl.cli.runs import (
    run_eval,
    run_lineage,
    run_list,
    run_report,
    run_schedule,
    run_status,
    run_tensorboard,
    run_verify,
)
from pbtrl.cli.sweep import add_sweep
from pbtrl.cli.tools import run_bench, run_config, run_doctor
from pbtrl.cli.track import add_track
from pbtrl.cli.training import run_replay, run_resume, run_set, run_train
from pbtrl.errors import (
    ConfigError,
    DamagedError,
    DiskFullError,
    EnvError,
    RenderError,
    RunError,
    TrackingError,
    WorkerError,
)
from pbtrl.system import streams
from pbtrl.system.streams import tell

# Before numpy is imported: strategies have small matrices, and threads beside busy workers make them 20 times slower.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

FIRST_STEPS = """first steps:
  pbtrl train quickstart          eight HalfCheetahs, three minutes
  pbtrl tb last                   their curves, in a browser
  pbtrl eval last                 the best one, on fresh episodes
  pbtrl config show reference     every setting; `pbtrl COMMAND --help` for every option"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0 success, 2 usage or config, 3 failed, 4 corrupt or missing data, 75 disk full; 129, 130 and 143
        after a signal.
    """
    streams.reopen()
    try:
        arguments = parse_arguments(argv)
        return int(arguments.command(arguments))
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        tell(str(error), sys.stderr)
        return code
    finally:
        streams.flush()


def _exit_code(error: Exception) -> int | None:
    """Return the exit code of an error of pbtrl; None for any other, which keeps its traceback."""
    codes = {DiskFullError: FULL, DamagedError: CORRUPT, ConfigError: USAGE, RunError: USAGE, RenderError: USAGE}
    codes |= {EnvError: FAILED, WorkerError: FAILED, TrackingError: FAILED}
    return next((code for kind, code in codes.items() if isinstance(error, kind)), None)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse arguments; overrides may stand between options, which argparse alone does not allow."""
    parser = build_parser()
    answer(parser)
    arguments, rest = parser.parse_known_args(argv)
    if "command" not in arguments:
        parser.print_help()
        parser.exit(USAGE)
    if hasattr(arguments, "overrides") and all("=" in r and not r.startswith("-") for r in rest):
        arguments.overrides = [*arguments.overrides, *rest]
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


class _Version(argparse.Action):
    """Option that prints the version and exits; argparse's own looks it up for every command."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help="show the version and exit")

    @override
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        tell(f"pbtrl {pbtrl.__version__}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="pbtrl",
        description="Deep RL with population based training built in.",
        epilog=FIRST_STEPS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    train = add_command(commands, "train", run_train, "train a population and choose its best member")
    add_config(train)
    train.add_argument("--name", help="name of the run directory (default: the config's name, or env and time)")
    exists = train.add_mutually_exclusive_group()
    exists.add_argument(
        "--if-exists", choices=["error", "resume", "overwrite"], default="error",
        help="what to do if a run of that name exists (default: error); `resume` starts it if there is none",
    )  # fmt: skip
    exists.add_argument(
        "--suffix",
        action="store_const",
        const="suffix",
        dest="if_exists",
        help="if the run exists, use NAME-2, NAME-3, ...",
    )
    exists.add_argument(
        "--overwrite",
        action="store_const",
        const="overwrite",
        dest="if_exists",
        help="if the run exists, delete it first",
    )
    train.add_argument(
        "--dry-run", action="store_true", help="check the config and its env, print the resolved config and stop"
    )
    add_root(train)
    add_progress(train)

    resume = add_command(commands, "resume", run_resume, "resume a stopped run")
    add_run(resume)
    resume.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="a.b=value",
        help="a longer budget, as in budget.env_steps_per_member=2e6",
    )
    add_trust(resume)
    add_progress(resume)

    change = add_command(commands, "set", run_set, "change bounds or explore factors of a run, or retire members")
    add_run(change)
    change.add_argument(
        "settings", nargs="+", metavar="key=value",
        help="such as strategy.explore.factors=[1.5,0.7], hparams.learning_rate.high=1e-2, or retire=m03,m04",
    )  # fmt: skip
    add_trust(change)

    evaluate = add_command(commands, "eval", run_eval, "evaluate members on fresh episodes, with raw returns")
    add_run(evaluate)
    evaluate.add_argument("--member", default="best", help="best, all, or an id such as m03 (default: best)")
    evaluate.add_argument(
        "--episodes",
        type=integer_between(1, 1_000_000),
        default=30,
        metavar="N",
        help="episodes per member (default: 30)",
    )
    evaluate.add_argument(
        "--seed",
        type=integer_between(0, 2**64 - 1),
        default=0,
        metavar="S",
        help="seed of envs and actions (default: 0)",
    )
    evaluate.add_argument(
        "--deterministic", action="store_true", help="take the most likely actions instead of samples"
    )
    evaluate.add_argument(
        "--video", type=integer_between(1, 16), nargs="?", const=1, default=0, metavar="N",
        help="also write a video of the first N episodes (default: 1) to eval/ in the run",
    )  # fmt: skip
    add_trust(evaluate)
    add_json(evaluate)

    status = add_command(commands, "status", run_status, "show the state of a run and its members")
    add_run(status)
    add_json(status)

    listing = add_command(commands, "list", run_list, "list all runs")
    add_root(listing)
    add_json(listing)

    verify = add_command(commands, "verify", run_verify, "verify the hashes of all snapshots, and check the journal")
    add_run(verify)
    verify.add_argument("--digest", action="store_true", help="print only the SHA-256 of the canonical journal")
    verify.add_argument(
        "--repair", action="store_true", help="move damaged snapshots into quarantine and delete leftovers"
    )
    verify.add_argument(
        "--decisions", action="store_true", help="ask the strategy again at every decision, and compare the answers"
    )
    add_trust(verify)
    add_json(verify)

    lineage = add_command(commands, "lineage", run_lineage, "list all copies between members, with time and reason")
    add_run(lineage)
    add_json(lineage)

    schedule = add_command(
        commands, "schedule", run_schedule, "print the hyperparameter schedule that a run discovered"
    )
    add_run(schedule)
    add_member(schedule)
    schedule.add_argument(
        "--format", choices=["yaml", "csv", "json"], default="yaml",
        help="yaml is the section `strategy` of a config that replays it (default: yaml)",
    )  # fmt: skip

    replay = add_command(
        commands, "replay", run_replay,
        "train a discovered schedule from scratch with fresh seeds, and compare it with constant hyperparameters",
    )  # fmt: skip
    add_run(replay)
    add_member(replay)
    replay.add_argument(
        "--seeds", type=integer_between(1, 1000), default=5, metavar="K", help="members of each new run (default: 5)"
    )
    replay.add_argument("--name", help="folder of the new runs, beside the run (default: RUN-replay)")
    add_trust(replay)
    add_progress(replay)
    add_json(replay)

    add_sweep(commands)

    report = add_command(commands, "report", run_report, "write an HTML report of a run, with plots")
    add_run(report)
    report.add_argument(
        "--only", choices=["training", "episodes", "population", "lineage", "timeline", "speed"], action="append",
        metavar="PLOT",
        help="training, episodes, population, lineage, timeline or speed; can be repeated (default: all)",
    )  # fmt: skip
    report.add_argument(
        "--watch", action="store_true", help="write it again every ten seconds, until the run has ended or Ctrl-C"
    )
    report.add_argument("--format", choices=["svg", "png"], default="svg", help="format of the plots (default: svg)")
    report.add_argument("--video", action="store_true", help="also show the first seconds of the run's newest video")

    add_export(commands)
    add_compare(commands)

    tensorboard = add_command(commands, "tb", run_tensorboard, "start TensorBoard for a run, on localhost")
    add_run(tensorboard)
    tensorboard.add_argument(
        "--expose", action="store_true", help="listen on all addresses of this machine; there is no password"
    )
    tensorboard.add_argument(
        "--port", type=integer_between(0, 65535), help="port (default: the first free one from 6006)"
    )

    add_track(commands)

    bench = add_command(
        commands, "bench", run_bench, "measure how fast a config trains, and how fast its simulator alone runs"
    )
    add_config(bench)
    bench.add_argument(
        "--seconds",
        type=parse_seconds,
        default=20.0,
        metavar="S",
        help="seconds per measurement, of which there are 3 to 6 (default: 20)",
    )
    add_json(bench)

    doctor = add_command(commands, "doctor", run_doctor, "check this machine, and whether a config can run on it")
    add_config(doctor, nargs="?")
    add_root(doctor)
    add_json(doctor)

    config = add_command(commands, "config", run_config, "show configs")
    config.add_argument(
        "what",
        choices=["show", "schema"],
        help="a resolved config (without a name, the list of shipped ones), or the JSON schema",
    )
    add_config(config, nargs="?")

    add_completion(commands)
    return parser
