"""Commands about configs and the machine: bench, doctor and config."""

from __future__ import annotations

import argparse
from typing import Any

from pbtrl.cli.arguments import add_command, add_config_arguments, add_json, add_root, parse_seconds
from pbtrl.cli.exit_codes import FAILED
from pbtrl.system.streams import tell
from pbtrl.system.strict_json import to_json


def add_bench(commands: Any) -> None:
    """Add the command."""
    bench = add_command(
        commands, "bench", run_bench, "measure how fast a config trains, and how fast its simulator alone runs"
    )
    add_config_arguments(bench)
    bench.add_argument(
        "--seconds",
        type=parse_seconds,
        default=20.0,
        metavar="S",
        help="seconds per measurement, of which there are 3 to 6 (default: 20)",
    )
    add_json(bench)


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


def add_doctor(commands: Any) -> None:
    """Add the command."""
    doctor = add_command(commands, "doctor", run_doctor, "check this machine, and whether a config can run on it")
    add_config_arguments(doctor, nargs="?")
    add_root(doctor)
    add_json(doctor)


def run_doctor(a: argparse.Namespace) -> int:
    """Check the machine, and whether a config can run on it."""
    from pbtrl.config.load import check, read

    source = read(a.config, a.overrides) if a.config else None
    config = check(source) if source else None
    from pbtrl.build.factory import prepare
    from pbtrl.diagnostics import doctor
    from pbtrl.training.start import check_warm_start

    prepared = config and prepare(config, source)
    if prepared and source:
        check_warm_start(prepared, source, a.runs)
    checks = doctor.examine(a.runs, prepared)
    tell(to_json(checks) if a.json else doctor.text(checks))
    return 0 if all(c["ok"] for c in checks) else FAILED


def add_config(commands: Any) -> None:
    """Add the command."""
    config = add_command(commands, "config", run_config, "show configs")
    config.add_argument(
        "what",
        choices=["list", "show", "schema"],
        help="the shipped configs, a resolved config with every default, or the JSON schema",
    )
    add_config_arguments(config, nargs="?")


def run_config(a: argparse.Namespace) -> int:
    """Print configs or their schema."""
    from pbtrl.config.load import describe_shipped, json_schema, load, to_yaml
    from pbtrl.reporting.tables import aligned

    if a.what == "show" and a.config is None:
        a.parser.error("show needs a config; `pbtrl config list` has the shipped ones")
    if a.what != "show" and a.config is not None:
        a.parser.error(f"{a.what} takes no config")
    if a.what == "schema":
        tell(to_json(json_schema(), indent=2))
    elif a.what == "list":
        tell(aligned(["config", "trains"], list(describe_shipped().items()), left=(0, 1)))
    else:
        tell(to_yaml(load(a.config, a.overrides)).rstrip())
    return 0
