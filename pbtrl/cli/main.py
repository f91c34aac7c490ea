"""Entry point of the command line: the parser of all commands, and the exit codes of errors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from typing_extensions import override

import pbtrl
from pbtrl.cli.compare import add_compare
from pbtrl.cli.completion import add_completion, answer
from pbtrl.cli.exit_codes import CORRUPT, FAILED, FULL, INTERRUPTED, USAGE
from pbtrl.cli.export import add_export
from pbtrl.cli.runs import (
    add_eval,
    add_lineage,
    add_list,
    add_report,
    add_schedule,
    add_status,
    add_tensorboard,
    add_verify,
)
from pbtrl.cli.sweep import add_sweep
from pbtrl.cli.tools import add_bench, add_config, add_doctor
from pbtrl.cli.track import add_track
from pbtrl.cli.training import add_replay, add_resume, add_set, add_train
from pbtrl.config.wording import did_you_mean
from pbtrl.errors import (
    ConfigError,
    ConfigProblem,
    DamagedError,
    DiskFullError,
    EnvError,
    RenderError,
    RunError,
    TrackingError,
    WorkerError,
)
from pbtrl.system import streams
from pbtrl.system.openblas import use_one_thread
from pbtrl.system.streams import tell

use_one_thread()  # before numpy is imported

COMMANDS = (
    add_train, add_resume, add_set, add_eval, add_status, add_list, add_verify, add_lineage, add_schedule, add_replay,
    add_sweep, add_report, add_export, add_compare, add_tensorboard, add_track, add_bench, add_doctor, add_config,
    add_completion,
)  # fmt: skip
"""Functions that add a command, in the order of the help."""
FIRST_STEPS = """first steps:
  pbtrl train quickstart          eight HalfCheetahs, three minutes
  pbtrl tb last                   their curves, in a browser
  pbtrl eval last                 the best one, on fresh episodes
  pbtrl config list               the shipped configs
  pbtrl config show reference     every setting; `pbtrl COMMAND --help` for every option"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0 success, 2 usage or config, 3 failed, 4 corrupt or missing data, 75 disk full; 129, 130 and 143
        after a signal.
    """
    streams.reopen()
    streams.escape_unencodable()
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
    codes |= {EnvError: FAILED, ConfigProblem: USAGE, WorkerError: FAILED, TrackingError: FAILED}
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
        arguments.parser.error(f"unrecognized arguments: {' '.join(rest)}{_hint(arguments, rest)}")
    return arguments


def _hint(arguments: argparse.Namespace, rest: Sequence[str]) -> str:
    """Suggest what the first unrecognized argument may mean; empty if nothing is close."""
    if rest[0].startswith("-"):
        options = [option for action in arguments.parser._actions for option in action.option_strings]
        near = did_you_mean(rest[0].partition("=")[0], options)
        return f". {near}" if near else ""
    return ". Write overrides as a.b=value" if hasattr(arguments, "overrides") else ""


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
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    return parser
