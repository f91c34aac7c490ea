"""`pbtrl train` and `pbtrl resume`."""

from __future__ import annotations

import argparse
import sys

from pbtrl.config.load import to_yaml
from pbtrl.system.streams import tell


def run_train(a: argparse.Namespace) -> int:
    """Train a new run."""
    from pbtrl.config.load import check, read
    from pbtrl.storage.run_directory import check_free

    source = read(a.config, a.overrides)
    config = check(source)

    if not a.dry_run and (asked := config.name if a.name is None else a.name) is not None:
        check_free(a.runs, asked, a.if_exists)
    from pbtrl.build.factory import prepare
    from pbtrl.training import session

    if a.dry_run:
        tell(to_yaml(prepare(config, source)).rstrip())
        return 0
    return session.start(
        config, source, root=a.runs, name=a.name, if_exists=a.if_exists,
        mode=a.progress, command=sys.argv, wide=a.wide,
    )  # fmt: skip


def run_resume(a: argparse.Namespace) -> int:
    """Resume a run."""
    from pbtrl.storage.run_lookup import find

    run = find(a.run, a.runs)
    from pbtrl.training import session

    return session.resume(
        run, mode=a.progress, command=sys.argv, overrides=a.overrides, wide=a.wide, trusted=a.trust_imports
    )
