"""Commands that read runs: eval, status, list, verify, lineage, schedule, report and tb."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from pbtrl.cli.arguments import (
    add_command,
    add_json,
    add_member,
    add_root,
    add_run,
    add_trust,
    integer_between,
)
from pbtrl.cli.exit_codes import CORRUPT, FAILED
from pbtrl.core.scores import EPISODES
from pbtrl.errors import DamagedError
from pbtrl.reporting.plot_names import PLOT_NAMES
from pbtrl.system import streams
from pbtrl.system.streams import tell
from pbtrl.system.strict_json import to_json

if TYPE_CHECKING:
    from pbtrl.storage.run_directory import RunDirectory


def add_eval(commands: Any) -> None:
    """Add the command."""
    evaluate = add_command(commands, "eval", run_eval, "evaluate members on fresh episodes, with raw returns")
    add_run(evaluate)
    evaluate.add_argument("--member", default="best", help="best, all, or an id such as m03 (default: best)")
    evaluate.add_argument(
        "--episodes",
        type=integer_between(1, 1_000_000),
        metavar="N",
        help=f"episodes per member (default: {EPISODES})",
    )
    evaluate.add_argument(
        "--seed",
        type=integer_between(0, 2**64 - 1),
        default=0,
        metavar="S",
        help="seed of envs and actions (default: 0)",
    )
    evaluate.add_argument(
        "--deterministic", action="store_true", help="take the most likely actions instead of samples"
    )
    evaluate.add_argument(
        "--video", type=integer_between(1, 16), nargs="?", const=1, default=0, metavar="N",
        help="also write a video of the first N episodes (default: 1) to eval/ in the run",
    )  # fmt: skip
    add_trust(evaluate)
    add_json(evaluate)


def run_eval(a: argparse.Namespace) -> int:
    """Evaluate snapshots on fresh episodes."""
    from pbtrl.reporting import tables
    from pbtrl.storage.run_lookup import find
    from pbtrl.storage.stored_config import load_stored_config
    from pbtrl.training import scoring

    run = find(a.run, a.runs)
    run.check_links()
    config = load_stored_config(run, trusted=a.trust_imports)
    results, unsaved = scoring.evaluate_member(
        config, run, a.member, episodes=a.episodes, seed=a.seed, deterministic=a.deterministic, video=a.video
    )
    if unsaved:
        tell(f"warning: {unsaved}", sys.stderr)
    printed = results if a.member == "all" else results[0]
    tell(to_json(printed) if a.json else tables.evaluations(results, run))
    if unscored := scoring.unscored(config, results):
        tell(unscored, sys.stderr)
        return FAILED
    return 0


def add_status(commands: Any) -> None:
    """Add the command."""
    status = add_command(commands, "status", run_status, "show the state of a run and its members")
    add_run(status)
    add_json(status)


def run_status(a: argparse.Namespace) -> int:
    """Print the status of a run and its members."""
    from pbtrl.reporting import tables
    from pbtrl.storage.references import cli_reference
    from pbtrl.storage.run_info import read_run_info
    from pbtrl.storage.run_lookup import find
    from pbtrl.storage.run_status import status

    run = find(a.run, a.runs)
    state = status(run)
    reason = read_run_info(run).get("reason", "") if state["state"] == "crashed" else ""
    tell(to_json(state) if a.json else tables.status(state, cli_reference(run), reason))
    return 0


def add_list(commands: Any) -> None:
    """Add the command."""
    listing = add_command(commands, "list", run_list, "list all runs")
    add_root(listing)
    add_json(listing)


def run_list(a: argparse.Namespace) -> int:
    """Print all runs."""
    from pbtrl.reporting import tables
    from pbtrl.storage.run_status import listing
    from pbtrl.storage.shell_words import root_option

    runs = listing(a.runs)
    if a.json:
        tell(to_json(runs))
    elif runs:
        tell(tables.listing(runs))
    else:
        tell(f"no runs in {a.runs}; start one with: pbtrl train quickstart{root_option(a.runs)}")
    return 0


def add_verify(commands: Any) -> None:
    """Add the command."""
    verify = add_command(commands, "verify", run_verify, "verify the hashes of all snapshots, and check the journal")
    add_run(verify)
    verify.add_argument("--digest", action="store_true", help="print only the SHA-256 of the canonical journal")
    verify.add_argument(
        "--repair", action="store_true", help="move damaged snapshots into quarantine and delete leftovers"
    )
    verify.add_argument(
        "--decisions", action="store_true", help="ask the strategy again at every decision, and compare the answers"
    )
    add_trust(verify)
    add_json(verify)


def run_verify(a: argparse.Namespace) -> int:
    """Check a run directory."""
    from pbtrl.diagnostics import verify
    from pbtrl.storage.run_lookup import find

    if a.digest and (a.decisions or a.json):
        a.parser.error(
            f"--digest prints nothing but the digest: leave out {'--decisions' if a.decisions else '--json'}"
        )
    run = find(a.run, a.runs)
    if a.repair:
        for line in verify.repair(run):
            tell(line, sys.stderr)
    if a.decisions:
        return _rederive(run, a)
    result = verify.examine(run)
    if a.digest and result["digest"] is None:
        raise DamagedError(f"{run}: its journal cannot be read, so it has no digest")
    tell(result["digest"] if a.digest else to_json(result) if a.json else verify.text(result))
    return 0 if result["ok"] else CORRUPT


def _rederive(run: RunDirectory, a: argparse.Namespace) -> int:
    """Ask the strategy again at every decision of the run."""
    from pbtrl.diagnostics import rederivation
    from pbtrl.storage.stored_config import load_stored_config

    config = load_stored_config(run, trusted=a.trust_imports, makes_envs=False)
    result = rederivation.rederive(run, config)
    tell(to_json(result) if a.json else rederivation.text(result))
    return 0 if result["difference"] is None else CORRUPT


def add_lineage(commands: Any) -> None:
    """Add the command."""
    lineage = add_command(commands, "lineage", run_lineage, "list all copies between members, with time and reason")
    add_run(lineage)
    add_json(lineage)


def run_lineage(a: argparse.Namespace) -> int:
    """Print all copies between members."""
    from pbtrl.core.records import changes_made
    from pbtrl.reporting import lineage, tables
    from pbtrl.storage.run_lookup import find

    run = find(a.run, a.runs)
    header, records, _ = run.load()
    copies, changes = lineage.copies(records), changes_made(records)
    if a.json:
        tell(to_json({"initial": header.initial, "changes": changes, "copies": copies}))
    else:
        tell("\n".join(filter(None, [header.origin, tables.copies(copies, header), *tables.changes(changes)])))
    return 0


def add_schedule(commands: Any) -> None:
    """Add the command."""
    schedule = add_command(
        commands, "schedule", run_schedule, "print the hyperparameter schedule that a run discovered"
    )
    add_run(schedule)
    add_member(schedule)
    schedule.add_argument(
        "--format", choices=["yaml", "csv", "json"], default="yaml",
        help="yaml is the section `strategy` of a config that replays it (default: yaml)",
    )  # fmt: skip


def run_schedule(a: argparse.Namespace) -> int:
    """Print the discovered schedule of a member."""
    from pbtrl.reporting.schedule import discover
    from pbtrl.storage.run_lookup import find

    schedule = discover(find(a.run, a.runs), a.member)
    match a.format:
        case "json":
            text = to_json(schedule.to_json())
        case "csv":
            text = schedule.to_csv()
        case _:
            text = schedule.to_yaml()
    tell(text.rstrip())
    return 0


def add_report(commands: Any) -> None:
    """Add the command."""
    report = add_command(commands, "report", run_report, "write an HTML report of a run, with plots")
    add_run(report)
    report.add_argument(
        "--only", choices=PLOT_NAMES, action="append", metavar="PLOT",
        help=f"{', '.join(PLOT_NAMES[:-1])} or {PLOT_NAMES[-1]}; can be repeated (default: all)",
    )  # fmt: skip
    report.add_argument(
        "--watch", action="store_true", help="write it again every ten seconds, until the run has ended or Ctrl-C"
    )
    report.add_argument("--format", choices=["svg", "png"], default="svg", help="format of the plots (default: svg)")
    report.add_argument("--video", action="store_true", help="also show the first seconds of the run's newest video")


def run_report(a: argparse.Namespace) -> int:
    """Write a run's report."""
    from pbtrl.reporting import html_report
    from pbtrl.storage.run_lookup import find

    run = find(a.run, a.runs)
    write = partial(html_report.write_report, run, only=a.only, form=a.format, video=a.video)
    if not a.watch:
        for path in write():
            tell(str(path))
        return 0
    tell(
        f"{run.report_file}, again every {html_report.WATCH_SECONDS:.0f} seconds while the run trains (Ctrl-C ends it)"
    )
    streams.flush()
    html_report.watch(run, lambda refresh: write(refresh=refresh))
    return 0


def add_tensorboard(commands: Any) -> None:
    """Add the command."""
    tensorboard = add_command(commands, "tb", run_tensorboard, "start TensorBoard for a run, on localhost")
    add_run(tensorboard)
    tensorboard.add_argument(
        "--expose", action="store_true", help="listen on all addresses of this machine; there is no password"
    )
    tensorboard.add_argument(
        "--port", type=integer_between(0, 65535), help="port (default: the first free one from 6006)"
    )


def run_tensorboard(a: argparse.Namespace) -> int:
    """Start TensorBoard for a run."""
    from pbtrl.reporting import tensorboard_server
    from pbtrl.storage.run_lookup import find

    logs = find(a.run, a.runs).tensorboard
    if not logs.is_dir():
        raise DamagedError(f"there is no {logs}: the run never began")
    return tensorboard_server.serve(logs, a.port, expose=a.expose)
