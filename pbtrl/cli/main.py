"""The parser of all commands, and the exit code of each ending."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pbtrl import __version__
from pbtrl.cli.arguments import (
    add_command,
    add_config,
    add_json,
    add_progress,
    add_root,
    add_run,
    add_trust,
    integer_between,
    parse_seconds,
)
from pbtrl.cli.exit_codes import CORRUPT, FAILED, FULL, INTERRUPTED, USAGE
from pbtrl.cli.runs import run_eval, run_lineage, run_list, run_report, run_status, run_tensorboard, run_verify
from pbtrl.cli.tools import run_bench, run_config, run_doctor
from pbtrl.cli.training import run_resume, run_train
from pbtrl.errors import ConfigError, DamagedError, DiskFullError, EnvError, RunError, WorkerError
from pbtrl.system import streams
from pbtrl.system.streams import tell

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
        arguments = parse_arguments(argv)
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
    """Exit code of an error that pbtrl raised on purpose; None for a bug, which keeps its traceback."""
    codes = {DiskFullError: FULL, DamagedError: CORRUPT, ConfigError: USAGE, RunError: USAGE, EnvError: FAILED}
    codes[WorkerError] = FAILED
    return next((code for kind, code in codes.items() if isinstance(error, kind)), None)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
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

    train = add_command(commands, "train", run_train, "train a population from a config and name its best member")
    add_config(train)
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
    add_root(train)
    add_progress(train)

    resume = add_command(commands, "resume", run_resume, "resume a stopped run")
    add_run(resume)
    resume.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="a.b=value",
        help="a longer budget: budget.env_steps_per_member=2e6",
    )
    add_trust(resume)
    add_progress(resume)

    evaluate = add_command(commands, "eval", run_eval, "play fresh episodes, raw returns")
    add_run(evaluate)
    evaluate.add_argument("--member", default="best", help="best, all, or an id such as m03 (default: best)")
    evaluate.add_argument(
        "--episodes", type=integer_between(1, 1_000_000), default=30, metavar="N", help="per member (default: 30)"
    )
    evaluate.add_argument(
        "--seed", type=integer_between(0, 2**64 - 1), default=0, metavar="S", help="of envs and actions (default: 0)"
    )
    evaluate.add_argument("--deterministic", action="store_true", help="the policy's mode instead of a sample")
    add_trust(evaluate)
    add_json(evaluate)

    status = add_command(commands, "status", run_status, "where a run and its members stand")
    add_run(status)
    add_json(status)

    listing = add_command(commands, "list", run_list, "all runs")
    add_root(listing)
    add_json(listing)

    verify = add_command(commands, "verify", run_verify, "hash every snapshot again, and check the journal")
    add_run(verify)
    verify.add_argument("--digest", action="store_true", help="print the SHA-256 of the canonical journal alone")
    verify.add_argument("--repair", action="store_true", help="put what is damaged into quarantine, delete leftovers")
    add_json(verify)

    lineage = add_command(commands, "lineage", run_lineage, "who copied whom, when and why")
    add_run(lineage)
    add_json(lineage)

    report = add_command(commands, "report", run_report, "a run on one page of HTML, with its pictures")
    add_run(report)
    report.add_argument(
        "--only", choices=["training", "lineage", "timeline", "speed"], action="append", metavar="PICTURE",
        help="training, lineage, timeline or speed; may be given several times (default: all)",
    )  # fmt: skip
    report.add_argument("--format", choices=["svg", "png"], default="svg", help="of the pictures (default: svg)")

    tensorboard = add_command(commands, "tb", run_tensorboard, "TensorBoard for a run, on localhost")
    add_run(tensorboard)
    tensorboard.add_argument("--expose", action="store_true", help="to other machines too, which is not safe")
    tensorboard.add_argument("--port", type=integer_between(0, 65535), help="(default: the first free one from 6006)")

    bench = add_command(commands, "bench", run_bench, "how fast a config trains, against its simulator alone")
    add_config(bench)
    bench.add_argument(
        "--seconds",
        type=parse_seconds,
        default=20.0,
        metavar="S",
        help="per measurement, of which there are 3 to 6 (default: 20)",
    )
    add_json(bench)

    doctor = add_command(commands, "doctor", run_doctor, "what this machine has, and whether a config will work on it")
    add_config(doctor, nargs="?")
    add_root(doctor)
    add_json(doctor)

    config = add_command(commands, "config", run_config, "look at configs")
    config.add_argument("what", choices=["show", "schema"], help="a resolved config, or the JSON schema of all")
    add_config(config, nargs="?")
    return parser
