"""Commands that train: `pbtrl train` and `pbtrl resume`."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

from pbtrl.cli.exit_codes import FAILED
from pbtrl.errors import DiskFullError
from pbtrl.system.streams import tell

if TYPE_CHECKING:
    from pbtrl.training.session import SessionHooks, SessionResult


def run_train(a: argparse.Namespace) -> int:
    """Train a new run."""
    from pbtrl.config.load import check, read, to_yaml
    from pbtrl.storage.run_directory import check_free

    source = read(a.config, a.overrides)
    config = check(source)
    if not a.dry_run and (name := config.name if a.name is None else a.name) is not None:
        check_free(a.runs, name, a.if_exists)
    from pbtrl.build.factory import prepare
    from pbtrl.training.start import start

    if a.dry_run:
        tell(to_yaml(prepare(config, source)).rstrip())
        return 0
    options = {"root": a.runs, "name": a.name, "if_exists": a.if_exists, "command": sys.argv}
    return _exit_code(start(config, source, _hooks(a), **options))


def run_resume(a: argparse.Namespace) -> int:
    """Resume a run."""
    from pbtrl.storage.run_lookup import find

    run = find(a.run, a.runs)
    from pbtrl.training.start import resume

    return _exit_code(resume(run, _hooks(a), command=sys.argv, overrides=a.overrides, trusted=a.trust_imports))


def _hooks(a: argparse.Namespace) -> SessionHooks:
    from pbtrl.reporting.presenter import TerminalPresenter
    from pbtrl.training.session import SessionHooks

    return SessionHooks(TerminalPresenter(a.progress, wide=a.wide))


def _exit_code(result: SessionResult) -> int:
    if result.message:
        with contextlib.suppress(DiskFullError):  # the exit code must still say how the run ended
            tell(result.message, sys.stderr)
    return 0 if result.outcome == "finished" else result.signal_exit or FAILED
