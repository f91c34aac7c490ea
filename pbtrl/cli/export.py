"""Command that takes a policy out of a run: `pbtrl export`."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from pbtrl.cli.arguments import add_command, add_json, add_member, add_run, add_trust, parse_path
from pbtrl.system.streams import tell
from pbtrl.system.strict_json import to_json


def add_export(commands: Any) -> None:
    """Add the command."""
    export = add_command(commands, "export", run_export, "write a member's policy for use without pbtrl")
    add_run(export)
    add_member(export)
    export.add_argument(
        "--format", choices=["bundle", "onnx", "hub"], default="bundle",
        help="bundle: weights and a policy.py that needs numpy alone; onnx: one graph; hub: a bundle with a model card "
        "for the Hugging Face hub (default: bundle)",
    )  # fmt: skip
    export.add_argument(
        "--out", type=parse_path, metavar="DIR",
        help="folder; an earlier export there is replaced (default: export/MEMBER-FORMAT in the run)",
    )  # fmt: skip
    add_trust(export)
    add_json(export)


def run_export(a: argparse.Namespace) -> int:
    """Export a policy."""
    from pbtrl.storage.run_lookup import find
    from pbtrl.storage.stored_config import load_stored_config

    run = find(a.run, a.runs)
    run.check_links()
    config = load_stored_config(run, trusted=a.trust_imports, makes_envs=False)
    from pbtrl.export.export import export
    from pbtrl.export.self_check import OBSERVATIONS
    from pbtrl.reporting.labels import labeled

    done = export(run, config, a.member, a.format, a.out, trusted=a.trust_imports)
    if a.json:
        tell(to_json({"folder": str(done.folder), **done.info}))
        return 0
    info = done.info
    rows = {
        "policy": f"{info['snapshot']} of {info['run']}: {info['agent']} in {info['env']}",
        "files": ", ".join(info["files"]),
        "check": f"largest difference from pbtrl's policy on {OBSERVATIONS} observations: "
        f"{info['largest_difference']:.1e}",
    }
    if a.format == "hub":
        name, folder = f"USER/{info['run']}-{info['member']}", str(done.folder)
        rows["upload"] = shlex.join(["hf", "upload", name, folder])
    tell(f"{done.folder}\n{labeled(rows)}")
    return 0
