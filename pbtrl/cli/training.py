"""Commands that train: `pbtrl train`, `pbtrl resume` and `pbtrl replay`."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

from pbtrl.cli.exit_codes import FAILED
from pbtrl.errors import DiskFullError
from pbtrl.system.streams import tell
from pbtrl.system.strict_json import to_json

if TYPE_CHECKING:
    from pbtrl.training.session import SessionHooks, SessionResult


def run_train(a: argparse.Namespace) -> int:
    """Train a new run."""
    from pbtrl.config.load import check, read, to_yaml
    from pbtrl.storage.run_creation import check_free

    source = read(a.config, a.overrides)
    config = check(source)
    if not a.dry_run and (name := config.name if a.name is None else a.name) is not None:
        check_free(a.runs, name, a.if_exists)
    from pbtrl.build.factory import prepare
    from pbtrl.training.start import check_warm_start, start

    if a.dry_run:
        prepared = prepare(config, source)
        check_warm_start(prepared, source, a.runs)
        tell(to_yaml(prepared).rstrip())
        return 0
    options = {"root": a.runs, "name": a.name, "if_exists": a.if_exists, "command": sys.argv}
    return exit_code(start(config, source, _hooks(a), **options))


def run_resume(a: argparse.Namespace) -> int:
    """Resume a run."""
    from pbtrl.storage.run_lookup import find

    run = find(a.run, a.runs)
    from pbtrl.training.start import resume

    return exit_code(resume(run, _hooks(a), command=sys.argv, overrides=a.overrides, trusted=a.trust_imports))


def run_set(a: argparse.Namespace) -> int:
    """Change what may change while a run lives."""
    from pbtrl.storage.run_lookup import find
    from pbtrl.training.adjusting import set_run

    tell(set_run(find(a.run, a.runs), a.settings, trusted=a.trust_imports))
    return 0


def run_replay(a: argparse.Namespace) -> int:
    """Train the schedule of a run from scratch, and compare it with constants."""
    from pbtrl.reporting import tables
    from pbtrl.reporting.presenter import PartPresenter
    from pbtrl.storage.run_lookup import find
    from pbtrl.training.replay import ARMS, plan
    from pbtrl.training.session import SessionHooks

    replay = plan(find(a.run, a.runs), seeds=a.seeds, member=a.member, name=a.name, trusted=a.trust_imports)
    presenter = PartPresenter("none" if a.json else a.progress, wide=a.wide)
    for arm in replay.unfinished():
        presenter.say(f"run {1 + ARMS.index(arm)} of {len(ARMS)}: {tables.REPLAY_ROWS[arm]}")
        result = replay.train(arm, SessionHooks(presenter), sys.argv)
        if result.outcome != "finished":
            code = exit_code(result)
            tell("the same command continues the replay, without what is finished", sys.stderr)
            return code
    if not replay.scored:
        presenter.say("evaluating all members on the same fresh episodes")
    scores = replay.scores()
    tell(to_json(scores) if a.json or a.progress == "json" else tables.replay(scores))
    return 0


def _hooks(a: argparse.Namespace) -> SessionHooks:
    from pbtrl.reporting.presenter import TerminalPresenter
    from pbtrl.training.session import SessionHooks

    return SessionHooks(TerminalPresenter(a.progress, wide=a.wide))


def exit_code(result: SessionResult) -> int:
    """Print the message of a session, and return the exit code of the command."""
    if result.message:
        with contextlib.suppress(DiskFullError):  # the exit code must still say how the run ended
            tell(result.message, sys.stderr)
    return 0 if result.outcome == "finished" else result.signal_exit or FAILED
