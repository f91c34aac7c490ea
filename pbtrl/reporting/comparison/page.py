"""Page of a comparison: one self-contained HTML file without scripts, light and dark, ready to print.

Names and settings of the runs may come from an untrusted source. All text is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pbtrl.errors import DiskFullError, RunError
from pbtrl.reporting.comparison import plots, tables
from pbtrl.reporting.comparison.groups import setting_text
from pbtrl.reporting.formatting import format_count, format_duration, format_fitness
from pbtrl.reporting.html_page import escape, figure, page, section, table
from pbtrl.storage.json_files import read_plain_file
from pbtrl.system.files import reason, write_atomically

if TYPE_CHECKING:
    from pbtrl.reporting.comparison.comparison import Comparison

FILE = "compare.html"
MARK = "<!-- written by pbtrl compare -->"

CAPTIONS = {
    "scores": "A point is a run. Bars are interquartile means; horizontal lines are their 95 % bootstrap intervals.",
    "curves": "Interquartile mean over the runs of a group. Best member: at each decision, the member that ranks best, "
    "scored by the episodes of its next report, which the ranking had not seen; the last point is the final score. "
    "So it is not the maximum of noise. A curve begins where all runs of the group have a value; a run that has "
    "ended keeps its last one. Steps are those of all members together, and time is training time.",
}
HEADINGS = {"scores": "Runs", "curves": "Curves"}

METHOD = (
    "IQM is the interquartile mean: the mean of the middle half of the runs. Intervals are percentile bootstraps over "
    "runs with a fixed seed, stratified by group. P(improvement) is the probability that a run of the one group beats "
    "a run of the other, where a tie counts half (Agarwal et al. 2021, arXiv 2108.13264). Rank p is that of Mann and "
    "Whitney's exact test, two-sided. The paired difference is the mean over the seeds that both groups have; "
    "signed-rank p is Wilcoxon's, given from 6 pairs on. Intervals over runs say nothing about other envs, budgets or "
    "search spaces."
)


def save(c: Comparison, path: Path | None = None, command: Sequence[str] = ()) -> Path:
    """Write the page and return its path.

    Raises:
        RunError: the file cannot be written, or is something else than a comparison.
    """
    path = (c.folder or Path()) / FILE if path is None else path / FILE if path.is_dir() else path
    check_target(path)
    try:
        write_atomically(path, make_page(c, command))
    except DiskFullError:
        raise
    except OSError as error:
        raise RunError(f"cannot write {path}: {reason(error).lower()}") from error
    return path


def check_target(path: Path) -> None:
    """Raise RunError if a file is there that pbtrl did not write."""
    try:
        written = MARK in read_plain_file(path, 8192).decode(errors="replace")
    except FileNotFoundError:
        return
    except RunError as error:
        raise RunError(str(error)) from error
    if not written:
        raise RunError(f"{path} exists and is not a comparison: give another file with --out")


def make_page(c: Comparison, command: Sequence[str] = ()) -> str:
    """Format the page."""
    task = c.runs[0].settings.get("env.id", c.runs[0].settings.get("trainable.name")) if c.runs else None
    title = "Comparison" + (f": {task}" if task else "")
    parts = [f"<p>{escape(_sentence(note))}</p>" for note in c.notes]
    parts += [f'<p class="warning">{escape(_sentence(warning))}</p>' for warning in c.warnings]
    parts.append(section("Results", table(*tables.groups_table(c))))
    if c.pairs:
        parts.append(section("Differences", table(*tables.pairs_table(c), text=(0, 1, -1))))
    pictures = plots.pictures(c).items()
    parts += [section(HEADINGS[name], figure(picture, CAPTIONS[name])) for name, picture in pictures]
    if c.differences:
        parts.append(section("Settings that differ", table(*_settings(c), text=range(len(c.groups) + 1))))
    parts.append(section("All runs", table(*_runs(c), text=(0, 1))))
    if c.left_out:
        rows = [[str(run.path), run.reason] for run in c.left_out]
        parts.append(section("Left out", table(["run", "reason"], rows, text=(0, 1))))
    parts.append(section("Method", f"<p>{escape(METHOD)}</p>"))
    parts.append(f"<p>{escape(tables.provenance(c, command))}</p>")
    return page(title, f"{MARK}\n" + "\n".join(parts))


def _settings(c: Comparison) -> tables.Table:
    rows = [[name, *map(setting_text, values)] for name, values in c.differences.items()]
    return ["setting", *(group.label for group in c.groups)], rows


def _runs(c: Comparison) -> tables.Table:
    show = format_count if c.metric.name == "steps_to" else format_fitness
    titles = ["run", "group", "seed", c.metric.text, "final score", "95 % over episodes", "chosen member"]
    titles += ["training fitness", f"total {c.runs[0].header.steps if c.runs else 'steps'}", "time"]
    rows = []
    for group in c.groups:
        for run, value in zip(group.runs, group.values, strict=True):
            interval = " to ".join(map(format_fitness, run.score_interval)) if run.score_interval else "-"
            rows.append([
                run.path.name, group.label, str(run.header.seed), show(value), format_fitness(run.score), interval,
                run.member or "-", format_fitness(run.fitness), f"{run.steps:,}", format_duration(run.seconds),
            ])  # fmt: skip
    return titles, rows


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
