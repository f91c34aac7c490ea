"""HTML report of a run (`pbtrl report`): one self-contained page, and its plots as files.

    runs/pong/  report.html  plots/{training,episodes,population,lineage,timeline,speed}.svg

The run directory may come from an untrusted source; see `html_page`.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pbtrl.core.records import ReportRecord, RunFinished
from pbtrl.core.scores import BestMember
from pbtrl.errors import DiskFullError, RunError
from pbtrl.reporting import html_page, plots, report_tables, tables
from pbtrl.reporting.plot_names import Plot
from pbtrl.reporting.plots.embedding import png_element, svg_element
from pbtrl.reporting.summary import outcome_rows
from pbtrl.reporting.tables import Table
from pbtrl.storage.best_member import read_best
from pbtrl.storage.references import cli_reference
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_header import RunHeader
from pbtrl.storage.run_state import is_training, state
from pbtrl.storage.run_status import summarize
from pbtrl.storage.video_files import newest_video, preview
from pbtrl.system.files import make_directory, reason, write_atomically

MAX_TABLE_ROWS = 200  # rows per table
LARGEST_SVG = 200_000  # bytes of a plot in the page; larger ones are PNG there
WATCH_SECONDS = 10.0  # seconds between two reports of `watch`
CAPTIONS = {
    "training": "Fitness of every member, and its values of each hyperparameter. Gray lines are copies, dotted lines "
    "are bounds that a value reached. Thickest: the slices that led to the best member.",
    "episodes": "A dot is an episode that a member's fitness is the mean of, or without a fitness one of its latest. "
    "Boxes are quartiles, whiskers reach the farthest dot within 1.5 box lengths.",
    "population": "A line is a member, brighter the fitter it is. Red rings are values at a bound of their "
    "hyperparameter. Thickest: the best member. Under PBT the values of members depend on each other.",
    "lineage": "Descent of the weights. Each set of fresh weights has a color. Thickest: that of the best member.",
    "timeline": "One bar per finished slice. Dotted lines show where the run was resumed.",
    "speed": "Speed of the whole population, averaged over each slice.",
}


def write_report(
    run: RunDirectory, *, only: Sequence[Plot] | None = None, form: plots.Format = "svg", video: bool = False,
    refresh: int | None = None,
) -> list[Path]:  # fmt: skip
    """Write a run's page and plots, all or `only` some; returns the files, the page first.

    Args:
        run: run directory.
        only: names of the plots to draw.
        form: format of the plots.
        video: whether to show the first seconds of the run's newest video.
        refresh: seconds after which a browser loads the page again, or None.

    Raises:
        DamagedError: the journal, run.json or best.json cannot be read.
        RunError: the directory cannot be written to, contains a symbolic link, or has no `video`.
    """
    run.check_links()
    header, records, population = run.load()
    video_html = _video(run, header) if video else ""
    best = read_best(run)
    leader = population.best.snapshot if population.best else None
    data = plots.RunData(header, records, population, best.snapshot if best else leader)
    drawn = {name: plots.draw(data, name, form) for name in only or plots.PLOTS}
    body = _body(run, best, data, [_plot(data, name, content, form) for name, content in drawn.items()])
    files: dict[Path, str | bytes] = {run.report_file: html_page.page(header.name, body + video_html, refresh)}
    files |= {run.plots / f"{name}.{form}": content for name, content in drawn.items()}
    try:
        make_directory(run.plots)
        for path, text in files.items():
            write_atomically(path, text)
    except DiskFullError:
        raise
    except OSError as error:
        raise RunError(f"cannot write to {run}: {reason(error)}") from error
    return list(files)


def watch(run: RunDirectory, write: Callable[[int | None], object], every: float = WATCH_SECONDS) -> None:
    """Write the report of a run whenever its journal has grown, until no process trains the run.

    Args:
        run: run directory.
        write: writes the report; its argument is `refresh` of `write_report`, None for the last report.
        every: seconds between two looks at the journal.
    """
    written = -1
    while is_training(state(run)):
        size = run.journal_path.stat().st_size
        if size != written:
            write(round(every))
            written = size
        time.sleep(every)
    write(None)


def _body(run: RunDirectory, best: BestMember | None, data: plots.RunData, figures: Sequence[str]) -> str:
    status = summarize(run, data.header, data.population)
    section, facts = html_page.section, html_page.facts
    parts = [html_page.note(tables.progress(status))]
    if best:
        parts.append(section(_title_of_best(data), facts(outcome_rows(best, data.header, data.records))))
    parts.append(section("Members", _table(tables.members(status), whole=True)))
    parts += figures
    if shares := report_tables.time_shares(data):
        parts.append(section("Time", _table(shares)))
    copies = tables.copies_table(data.copies, data.header)
    parts.append(section("Copies", _table(copies, wide=(4,)) if copies.rows else html_page.note("no copies yet")))
    if (failures := report_tables.failures(data)).rows:
        parts.append(section("Failures and skipped updates", _table(failures, wide=(2,))))
    parts.append(section("Settings that differ from the defaults", _table(report_tables.settings(run), wide=(1, 2))))
    if config := report_tables.config_text(run):
        whole = f"<details><summary>All settings</summary>\n<pre>{html_page.escape(config)}</pre>\n</details>"
        parts.append(whole)
    parts.append(section("Environment", facts(report_tables.run_facts(run, data))))
    return "\n".join(parts)


def _title_of_best(data: plots.RunData) -> str:
    ended, reported = (
        max((i for i, record in enumerate(data.records) if isinstance(record, kind)), default=-1)
        for kind in (RunFinished, ReportRecord)
    )
    continued = 0 <= ended < reported
    return "Best member" + (", before the run was continued" if continued else "")


def _table(table: Table, wide: Sequence[int] = (), *, whole: bool = False) -> str:
    """Format a table, unless `whole` only its last MAX_TABLE_ROWS rows, and its notes."""
    skipped = 0 if whole else max(0, len(table.rows) - MAX_TABLE_ROWS)
    marked = {(row - skipped, column) for row, column in table.marked}
    notes = [*([f"{skipped} earlier ones are left out"] if skipped else []), *table.notes]
    rows = html_page.table(table.titles, table.rows[skipped:], table.left, marked, wide) if table.rows else ""
    return "\n".join([rows, *map(html_page.note, notes)])


def _video(run: RunDirectory, header: RunHeader) -> str:
    """Format the first seconds of the newest video."""
    if header.unit == "steps":
        raise RunError(f"{run} trains no agent in an env, so it has no episodes to show")
    if (path := newest_video(run)) is None:
        raise RunError(f"{run} has no video: make one with pbtrl eval {cli_reference(run)} --video")
    image = f'<img alt="video" src="data:image/gif;base64,{base64.b64encode(preview(path)).decode()}">'
    caption = f"First seconds of {run.relative(path)}."
    return html_page.section("Video", html_page.figure(image, caption))


def _plot(data: plots.RunData, name: Plot, content: bytes, form: plots.Format) -> str:
    if form == "svg" and len(content) <= LARGEST_SVG:
        picture = svg_element(content, name)
    else:
        picture = png_element(content if form == "png" else plots.draw(data, name, "png"), name)
    return html_page.section(name.capitalize(), html_page.figure(picture, CAPTIONS[name]))
