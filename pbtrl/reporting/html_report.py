"""HTML report of a run (`pbtrl report`): one self-contained page, and its plots as files.

    runs/pong/  report.html  plots/{training,lineage,timeline,speed}.svg

The run directory may come from an untrusted source. All of its text is escaped, and the page's content security policy
forbids scripts and external resources.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pbtrl.core.messages import skips
from pbtrl.errors import DamagedError, DiskFullError, RunError, printable
from pbtrl.reporting import plots, tables
from pbtrl.reporting.formatting import format_duration
from pbtrl.reporting.labels import labeled
from pbtrl.reporting.summary import outcome_text
from pbtrl.storage import run_directory
from pbtrl.storage.journal import Line
from pbtrl.storage.json_files import read_json_if_exists
from pbtrl.storage.references import cli_reference
from pbtrl.storage.run_info import read_run_info
from pbtrl.storage.run_status import corruption_as_error, load_run, summarize
from pbtrl.system.files import make_directory, reason, write_atomically

MIME = {"svg": "image/svg+xml", "png": "image/png"}
MOST = 200  # lines per list
CAPTIONS = {
    "training": "Fitness of every member, and its values of each hyperparameter. Gray lines are copies, dotted lines "
    "are bounds that a value reached. Black: the slices that led to the best member.",
    "lineage": "Descent of the weights. Each set of fresh weights has a color. Black: the lineage of the best member.",
    "timeline": "One bar per finished slice. Dotted lines show where the run was resumed.",
    "speed": "Speed of the whole population, averaged over each slice.",
}

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #222 }}
pre {{ font: 12.5px/1.45 ui-monospace, monospace; background: #f6f6f6; padding: .8em 1em; overflow-x: auto }}
img {{ max-width: 100% }}
{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def write_report(run: Path, *, only: Sequence[str] | None = None, form: plots.Format = "svg") -> list[Path]:
    """Write a run's page and plots, all or `only` some; returns the files, the page first.

    Raises:
        DamagedError: the journal, run.json or best.json cannot be read.
        RunError: the directory cannot be written to, or contains a symbolic link.
    """
    run_directory.check_links(run)
    header, lines, population = load_run(run)
    best = read_json_if_exists(run / "best.json")
    leader = population.best.snapshot if population.best else None
    with corruption_as_error(run):
        data = plots.RunData(header, lines, population, str(best["snapshot"]) if "snapshot" in best else leader)
        drawn = {name: plots.draw(data, name, form) for name in only or plots.PLOTS}
        body = _body(run, best, data, {name: _image(name, content, form) for name, content in drawn.items()})
        content = page(header.name, body)
    files: dict[Path, str | bytes] = {run / "report.html": content}
    files |= {run / "plots" / f"{name}.{form}": content for name, content in drawn.items()}
    try:
        make_directory(run / "plots")
        for path, text in files.items():
            write_atomically(path, text)
    except DiskFullError:
        raise
    except OSError as error:
        raise RunError(f"cannot write to {run}: {reason(error)}") from error
    return list(files)


def page(title: str, body: str, style: str = "") -> str:
    """Format a page.

    Args:
        title: its title, as plain text.
        body: HTML below the title.
        style: further rules of CSS.
    """
    return PAGE.format(title=_text(title), body=body, style=style)


def _body(run: Path, best: dict[str, Any], data: plots.RunData, images: dict[str, str]) -> str:
    parts = []
    if best:
        kinds = [line["kind"] for line in data.lines]
        continued = "finish" in kinds and "report" in kinds[::-1][: kinds[::-1].index("finish")]
        title = "Best member" + (", before the run was continued" if continued else "")
        try:
            parts.append(_section(title, outcome_text(best, data.header, data.lines)))
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise DamagedError(f"{run / 'best.json'} cannot be read: {type(error).__name__}: {error}") from error
    standing = summarize(run, data.header, data.population)
    parts.append(_section("Members", tables.status(standing, cli_reference(run))))
    parts += images.values()
    parts.append(_section("Copies", _newest(tables.copies(data.copies, data.header), titles=1)))
    if wrong := [text for line in data.lines if (text := _wrong(line))]:
        parts.append(_section("Failures", _newest("\n".join(wrong))))
    parts.append(_section("Environment", _facts(run, data)))
    return "\n".join(parts)


def _wrong(line: Line) -> str:
    """Describe a failure, loss or divergence in one line; empty for other journal lines."""
    match line["kind"]:
        case "failure":
            end = ": given up" if line["given_up"] else ""
            text = f"{line['assignment']} {line['error']}{end}"
        case "void":
            text = f"{line['snapshot']} lost: {line['error']}"
        case "report" if line["diverged"]:
            text = f"{line['assignment']} diverged"
        case "report" if counts := skips(line):
            text = f"{line['assignment']} skipped {counts[0]} of {counts[1]} updates, whose gradient was not finite"
        case _:
            return ""
    return f"{format_duration(line['timing']['elapsed'])}  {text.splitlines()[0]}"


def _facts(run: Path, data: plots.RunData) -> str:
    known = read_run_info(run)
    versions = known.get("versions")
    facts = {
        "seed": f"{data.header.seed}; deterministic: {data.header.deterministic}",
        "sessions": str(known.get("sittings", "?")),
        "commit": str(known.get("git") or "none"),
        "command": " ".join(map(str, known["command"])) if isinstance(known.get("command"), list) else "?",
        "versions": "\n".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else "?",
    }
    return labeled(facts)


def _newest(text: str, titles: int = 0) -> str:
    """Keep the last MOST lines of a text, below its first `titles` lines."""
    lines = text.split("\n")
    left_out = len(lines) - titles - MOST
    return text if left_out <= 0 else "\n".join([*lines[:titles], f"({left_out} earlier)", *lines[-MOST:]])


def _section(title: str, text: str) -> str:
    return f"<h2>{title}</h2>\n<pre>{_text(text)}</pre>"


def _image(name: str, content: bytes, form: plots.Format) -> str:
    data = base64.b64encode(content).decode()
    image = f'<img alt="{name}" src="data:{MIME[form]};base64,{data}">'
    return f"<h2>{name.capitalize()}</h2>\n<p>{CAPTIONS[name]}</p>\n{image}"


def _text(text: str) -> str:
    return html.escape(printable(text))
