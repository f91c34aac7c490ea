"""Command `pbtrl sweep`: a grid of settings times seeds."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pbtrl.cli.arguments import add_command, add_json, add_overrides, add_progress, add_root, add_trust
from pbtrl.cli.exit_codes import FAILED
from pbtrl.cli.training import exit_code
from pbtrl.errors import DiskFullError
from pbtrl.system.streams import tell
from pbtrl.system.strict_json import to_json


def add_sweep(commands: Any) -> None:
    """Add the command."""
    sweep = add_command(
        commands, "sweep", run_sweep, "train a grid of settings with several seeds each, at equal compute"
    )
    sweep.add_argument(
        "config", nargs="*",
        help="YAML files or names of shipped configs; or the name of a sweep, which then continues",
    )  # fmt: skip
    add_overrides(sweep, "settings that override those of every config")
    sweep.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="a.b=x,y",
        help="a setting to vary, with its values; can be repeated",
    )
    sweep.add_argument(
        "--seeds", type=parse_seeds, metavar="K",
        help="number of seeds, from the config's seed on, or a list such as 3,7,11, or `3,` for one seed (default: 5)",
    )  # fmt: skip
    sweep.add_argument("--name", help="name of the sweep's directory (default: CONFIG-sweep)")
    sweep.add_argument("--unequal", action="store_true", help="allow arms that train for different numbers of steps")
    sweep.add_argument("--dry-run", action="store_true", help="check every arm, print the plan and stop")
    add_trust(sweep)
    add_root(sweep)
    add_progress(sweep)
    add_json(sweep)


def parse_seeds(text: str) -> int | list[int]:
    """Parse the number of seeds, or a list of seeds; `plan` checks them."""
    if not re.fullmatch("[0-9]{1,19}(,[0-9]{1,19})*,?", text):
        raise argparse.ArgumentTypeError(f"must be a number of seeds, or seeds such as 3,7,11, not {text[:40]}")
    seeds = [int(seed) for seed in text.split(",") if seed]
    return seeds if "," in text else seeds[0]


def run_sweep(a: argparse.Namespace) -> int:
    """Train a grid of settings with several seeds, or continue."""
    from pbtrl.reporting import sweep_tables
    from pbtrl.reporting.presenter import PartPresenter
    from pbtrl.storage.shell_words import root_option
    from pbtrl.training.session import SessionHooks
    from pbtrl.training.sweep import plan
    from pbtrl.training.sweep_arms import parse_grid

    configs, root, name = _sweep_of(a)
    overrides = [word for word in [*a.config, *a.overrides] if "=" in word]
    sweep = plan(
        configs, root=root, name=name, overrides=overrides, grid=parse_grid(a.set), seeds=a.seeds, unequal=a.unequal,
        trusted=a.trust_imports,
    )  # fmt: skip
    quiet = a.json or a.progress == "json"
    presenter = PartPresenter("none" if a.json else a.progress, wide=a.wide)
    for note in dict.fromkeys(note for arm in sweep.arms for note in arm.notes):
        presenter.warn(note)
    if a.dry_run:
        tell(to_json(sweep.result()) if quiet else sweep_tables.plan_text(sweep.description(), str(sweep.folder)))
        return 0
    presenter.say(sweep_tables.plan_text(sweep.description(), str(sweep.folder)))

    def announce(event: Mapping[str, Any]) -> None:
        presenter.say(sweep_tables.event_text(event))
        if a.progress == "json" and not a.json:
            with suppress(DiskFullError):
                tell(to_json(event))

    outcome = sweep.train(SessionHooks(presenter), announce, sys.argv)
    trust = " --trust-imports" if any(arm.config.imports for arm in sweep.arms) else ""
    again = f"pbtrl sweep {sweep.folder.name}{root_option(root)}{trust}"
    if outcome.stopped:
        code = exit_code(outcome.stopped)
        tell(f"the same command, or `{again}`, continues the sweep, without what is finished", sys.stderr)
        return code
    result = sweep.result()
    tell(to_json(result) if quiet else sweep_tables.result_text(result))
    if not quiet and len({arm.task for arm in sweep.arms}) == 1:
        tell(f"next  pbtrl compare {sweep.folder.name}{root_option(root)}")
    for run, message in outcome.failed.items():
        tell(f"failed: {run}: {message}", sys.stderr)
    if outcome.failed:
        tell(
            f"{len(outcome.failed)} of {len(sweep.runs)} runs failed; once the causes are removed: {again}", sys.stderr
        )
    return FAILED if outcome.failed else 0


def _sweep_of(a: argparse.Namespace) -> tuple[list[str], Path, str | None]:
    """Return the configs, the directory of all runs and the name of the sweep.

    A single word that is no config but names a sweep, or is its path, stands for it.
    """
    from pbtrl.config.load import locate
    from pbtrl.storage.run_lookup import SWEEP_FILE

    configs = [word for word in a.config if "=" not in word]
    if len(configs) == 1 and a.name is None and not locate(configs[0]).is_file():
        for folder in (a.runs / configs[0], Path(os.path.expanduser(configs[0]))):
            if os.path.isfile(folder / SWEEP_FILE):
                folder = folder.resolve() if folder.name in ("", "..") else folder
                return [], folder.parent, folder.name
    return configs, a.runs, a.name
