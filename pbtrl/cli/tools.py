"""Commands about configs and the machine: bench, doctor and config."""

from __future__ import annotations

import argparse

from pbtrl.cli.exit_codes import FAILED
from pbtrl.system.streams import tell
from pbtrl.system.strict_json import to_json


def run_bench(a: argparse.Namespace) -> int:
    """Measure how fast a config trains."""
    from pbtrl.config.load import check, read

    source = read(a.config, a.overrides)
    config = check(source)
    from pbtrl.build.factory import prepare
    from pbtrl.diagnostics import benchmark

    result = benchmark.measure(prepare(config, source), a.seconds)
    tell(to_json(result) if a.json else benchmark.text(result))
    return 0


def run_doctor(a: argparse.Namespace) -> int:
    """Check the machine, and whether a config can run on it."""
    from pbtrl.config.load import check, read

    source = read(a.config, a.overrides) if a.config else None
    config = check(source) if source else None
    from pbtrl.build.factory import prepare
    from pbtrl.diagnostics import doctor

    checks = doctor.examine(a.runs, config and prepare(config, source))
    tell(to_json(checks) if a.json else doctor.text(checks))
    return 0 if all(c["ok"] for c in checks) else FAILED


def run_config(a: argparse.Namespace) -> int:
    """Print configs or their schema."""
    from pbtrl.config.load import json_schema, load, shipped, to_yaml

    if a.what == "schema":
        tell(to_json(json_schema(), indent=2))
    elif a.config is None:
        tell("\n".join(shipped()))
    else:
        tell(to_yaml(load(a.config, a.overrides)).rstrip())
    return 0
