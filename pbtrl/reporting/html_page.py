"""Frame of an HTML page: one self-contained file without scripts, light and dark, for phone, laptop and print.

Texts may come from an untrusted source. All of them are escaped, and the page's content security policy forbids scripts
and external resources.
"""

from __future__ import annotations

import html
from collections.abc import Collection, Mapping, Sequence

from pbtrl.errors import printable

STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em;
  color: CanvasText; background: Canvas }
h1, h2 { line-height: 1.2; overflow-wrap: anywhere }
h2 { margin-top: 2em }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; display: block; overflow-x: auto }
th, td { padding: .25em .8em; text-align: right; border-bottom: 1px solid #8886; white-space: nowrap }
th:first-child, td:first-child, td.text, th.text { text-align: left }
table.facts th { font-weight: normal; color: GrayText; vertical-align: top }
table.facts td { text-align: left; white-space: pre-wrap; overflow-wrap: anywhere }
td.marked { font-weight: bold; color: #d62728 }
td.wide { white-space: pre-wrap; min-width: 18em }
pre { font: 12.5px/1.45 ui-monospace, monospace; background: #8882; padding: .8em 1em; overflow-x: auto }
figure { margin: 1em 0; break-inside: avoid; overflow-x: auto }
figcaption, .note { color: GrayText; margin: .3em 0 }
svg, img { width: 100%; height: auto; min-width: 44em }
svg { fill: currentColor; stroke-linejoin: round; stroke-linecap: butt }
img { background: #fff }
.bar { display: flex; height: .8em; width: 12em }
.warning { border-left: 4px solid #d62728; padding-left: .8em }
@media screen and (max-width: 46em) {
  figure::before { content: "wider than the screen: scroll sideways"; color: GrayText; font-size: .85em }
}
@media print {
  body { max-width: none; margin: 0; font-size: 10pt }
  h2 { break-after: avoid }
  tr { break-inside: avoid }
  svg, img { min-width: 0 }
  figure, table { overflow: visible }
  th, td { padding: .15em .4em }
  th { white-space: normal }
}
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">{refresh}
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def page(title: str, body: str, refresh: int | None = None) -> str:
    """Format a page.

    Args:
        title: its title, as plain text.
        body: HTML below the title.
        refresh: seconds after which a browser loads it again, or None.
    """
    again = f'\n<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    return PAGE.format(title=escape(title), body=body, style=STYLE, refresh=again)


def escape(text: str) -> str:
    """Escape plain text for HTML, and its control characters."""
    return html.escape(printable(text))


def section(title: str, *parts: str) -> str:
    """Format a section; its parts are HTML."""
    return "\n".join([f"<h2>{escape(title)}</h2>", *parts])


def note(text: str) -> str:
    """Format a line of plain text below a table."""
    return f'<p class="note">{escape(text)}</p>'


def figure(picture: str, caption: str) -> str:
    """Format a picture, which is HTML, with a caption."""
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int] = (0,),
    marked: Collection[tuple[int, int]] = (), wide: Sequence[int] = (),
) -> str:  # fmt: skip
    """Format a table of plain texts.

    Args:
        titles: titles of the columns.
        rows: cells.
        text: columns that are aligned to the left; negative numbers count from the end.
        marked: cells (row, column) to emphasize.
        wide: columns of longer texts, which are wrapped.
    """
    left = {place % len(titles) for place in (*text, *wide)}
    wrapped = {place % len(titles) for place in wide}

    def line(tag: str, cells: Sequence[str], number: int | None = None) -> str:
        kinds = [
            [
                *(["text"] if i in left else []),
                *(["wide"] if i in wrapped and tag == "td" else []),
                *(["marked"] if (number, i) in marked else []),
            ]
            for i in range(len(cells))
        ]
        attributes = [f' class="{" ".join(kind)}"' if kind else "" for kind in kinds]
        return (
            "<tr>" + "".join(f"<{tag}{a}>{escape(c)}</{tag}>" for a, c in zip(attributes, cells, strict=True)) + "</tr>"
        )

    body = "\n".join(line("td", row, i) for i, row in enumerate(rows))
    return f"<table>\n<thead>{line('th', titles)}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def facts(rows: Mapping[str, str]) -> str:
    """Format a table of labels and texts."""
    lines = [f"<tr><th>{escape(name.strip())}</th><td>{escape(text)}</td></tr>" for name, text in rows.items()]
    return '<table class="facts">\n<tbody>\n' + "\n".join(lines) + "\n</tbody>\n</table>"
