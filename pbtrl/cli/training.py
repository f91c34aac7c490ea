"""Commands that train: `pbtrl train`, `pbtrl resume`, `pbtrl set` and `pbtrl replay`."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING, Any

from pbtrl.cli.arguments import (
    add_command,
    add_config_arguments,
    add_json,
    add_member,
    add_overrides,
    add_progress,
    add_root,
    add_run,
    add_trust,
    integer_between,
)
from pbtrl.cli.exit_codes import FAILED
from pbtrl.errors import DiskFullError, RunError
from pbtrl.system.streams import tell
from pbtrl.system.strict_json import to_json

if TYPE_CHECKING:
    from pbtrl.training.session import SessionHooks, SessionResult


def add_train(commands: Any) -> None:
    """Add the command."""
    train = add_command(commands, "train", run_train, "train a population and choose its best member")
    add_config_arguments(train)
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


def run_train(a: argparse.Namespace) -> int:
    """Train a new run."""
    from pbtrl.config.load import check, read, to_yaml
    from pbtrl.storage.run_creation import check_free

    source = read(a.config, a.overrides)
    config = check(source)
    if (name := config.name if a.name is None else a.name) is not None:
        check_free(a.runs, name, a.if_exists)
    from pbtrl.training.start import check_start, resumes, start, start_warnings

    if a.dry_run:
        prepared, _ = check_start(config, source, root=a.runs, name=name, if_exists=a.if_exists)
        for warning in () if resumes(a.runs, name, a.if_exists) else start_warnings(prepared, source):
            tell(f"warning: {warning}", sys.stderr)
        tell(to_yaml(prepared).rstrip())
        return 0
    options = {"root": a.runs, "name": a.name, "if_exists": a.if_exists, "command": sys.argv}
    return exit_code(start(config, source, _hooks(a), **options))


def add_resume(commands: Any) -> None:
    """Add the command."""
    resume = add_command(commands, "resume", run_resume, "resume a stopped run")
    add_run(resume)
    add_overrides(resume, "a longer budget, as in budget.env_steps_per_member=2e6")
    add_trust(resume)
    add_progress(resume)


def run_resume(a: argparse.Namespace) -> int:
    """Resume a run."""
    from pbtrl.storage.run_lookup import find

    run = find(a.run, a.runs)
    from pbtrl.training.start import resume

    return exit_code(resume(run, _hooks(a), command=sys.argv, overrides=a.overrides, trusted=a.trust_imports))


def add_set(commands: Any) -> None:
    """Add the command."""
    change = add_command(commands, "set", run_set, "change bounds or explore factors of a run, or retire members")
    add_run(change)
    change.add_argument(
        "settings", nargs="+", metavar="key=value",
        help="such as strategy.explore.factors=[1.5,0.7], hparams.learning_rate.high=1e-2, or retire=m03,m04",
    )  # fmt: skip
    add_trust(change)


def run_set(a: argparse.Namespace) -> int:
    """Change what may change while a run lives."""
    from pbtrl.storage.run_lookup import find
    from pbtrl.training.adjusting import set_run

    tell(set_run(find(a.run, a.runs), a.settings, trusted=a.trust_imports))
    return 0


def add_replay(commands: Any) -> None:
    """Add the command."""
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
        if result is not None and result.outcome != "finished":
            code = exit_code(result)
            tell("the same command continues the replay, without what is finished", sys.stderr)
            return code
    if busy := replay.unfinished():
        raise RunError(
            f"another process trains {', '.join(busy)} of {replay.folder}: repeat the command when it has ended"
        )
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
