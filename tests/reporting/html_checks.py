"""Checks of an HTML page: well-formed, self-contained, without scripts."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

EMPTY = {"meta", "img", "br", "link", "input", "hr"}  # elements without an end tag
FORBIDDEN = {"script", "link", "iframe", "object", "embed", "base", "form", "foreignobject", "audio"}


class Checker(HTMLParser):
    """Parser that fails on a wrong end tag, and collects what a page refers to."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.references: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attributes:
            assert not name.startswith("on"), name
            if name == "id":
                self.ids[str(value)] += 1
            if name in ("src", "href", "xlink:href"):
                self.references.add(str(value))
            self.references |= set(re.findall(r"url\(([^)]*)\)", str(value)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in EMPTY:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without a start"
        assert self.open.pop() == tag


def checked(page: str) -> Checker:
    """Parse a page and check it."""
    parser = Checker()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert not FORBIDDEN & parser.tags.keys()
    assert [name for name, count in parser.ids.items() if count > 1] == []
    inside = {reference[1:] for reference in parser.references if reference.startswith("#")}
    assert inside <= parser.ids.keys()
    assert [r[:40] for r in parser.references if not r.startswith(("#", "data:image/"))] == []
    assert "//" not in re.sub(r"data:[^\"]*|<pre>.*?</pre>|<t[dh][^>]*>.*?</t[dh]>", "", page, flags=re.DOTALL)
    assert "default-src 'none'" in page
    assert 'name="viewport"' in page
    assert "color-scheme: light dark" in page
    assert len(page) < 2_000_000
    return parser
