"""Command that shows a run in an experiment tracker: `pbtrl track`."""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbtrl.cli.arguments import add_command, add_run
from pbtrl.system import streams
from pbtrl.system.streams import tell

if TYPE_CHECKING:
    from pbtrl.integrations.tracking_events import Tracker
    from pbtrl.storage.run_directory import RunDirectory

POLL_SECONDS = 5.0  # seconds between two looks at the journal
PROJECTS = {"wandb": "WANDB_PROJECT", "mlflow": "MLFLOW_EXPERIMENT_NAME"}


def add_track(commands: Any) -> None:
    """Add the command."""
    track = add_command(
        commands, "track", run_track, "show a run in Weights & Biases or MLflow, also while it trains; can be repeated"
    )
    add_run(track)
    track.add_argument("--to", choices=[*PROJECTS], required=True, help="tracker, to be installed as an extra of pbtrl")
    track.add_argument("--follow", action="store_true", help="go on until the run has ended")
    track.add_argument(
        "--project", help="W&B project or MLflow experiment (default: that of the tracker's environment, or pbtrl)"
    )


def run_track(a: argparse.Namespace) -> int:
    """Send what is new in a run to a tracker."""
    from pbtrl.integrations.tracking import Tracking
    from pbtrl.storage.run_lookup import find
    from pbtrl.storage.run_state import is_training, state
    from pbtrl.system.signals import Interrupted, Signals

    run = find(a.run, a.runs)
    run.check_links()
    connect = _tracker(a.to)
    project = a.project or os.environ.get(PROJECTS[a.to]) or "pbtrl"
    with run.lock(f"track-{a.to}.lock"), Signals() as signals:
        tracking = Tracking(run, a.to, partial(connect, project=project), partial(_files, run))
        with contextlib.closing(tracking):
            training, announced = True, False
            while training and signals.code is None:
                training = a.follow and is_training(state(run))
                tracking.advance(lambda: signals.code is not None)
                if tracking.where and not announced:
                    tell(tracking.where)
                    streams.flush()
                    announced = True
                with contextlib.suppress(Interrupted), signals.raising():
                    time.sleep(POLL_SECONDS if training else 0.0)
    tell(f"sent {tracking.points:,} points of {tracking.lines:,} journal lines" if tracking.lines else "nothing is new")
    return signals.code or 0


def _tracker(name: str) -> Callable[..., Tracker]:
    """Import the client of a tracker.

    Raises:
        RunError: its library is not installed.
    """
    from pbtrl.errors import MissingPackageError, RunError

    try:
        if name == "wandb":
            from pbtrl.integrations.wandb_tracker import WandbTracker

            return WandbTracker
        from pbtrl.integrations.mlflow_tracker import MlflowTracker
    except ImportError as error:
        package = "mlflow-skinny" if name == "mlflow" else name
        raise RunError(str(MissingPackageError(f"--to {name}", package, name))) from error
    return MlflowTracker


def _files(run: RunDirectory) -> Sequence[Path]:
    """Files to keep with a finished run: a new report, the config, the best member and the newest video."""
    from pbtrl.reporting.html_report import write_report
    from pbtrl.storage.video_files import newest_video

    report, *_ = write_report(run)
    rest = [run.resolved_config, run.best_file, newest_video(run)]
    return [report, *(path for path in rest if path is not None and path.is_file())]
