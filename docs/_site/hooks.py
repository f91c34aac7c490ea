"""mkdocs hooks: pages that are generated from the code, and links of pages that must also work on GitHub.

A line `<!-- settings: agents.impala -->` in a page becomes the table of these settings. Links that lead out of docs/ go
to the page or file of the site that has the same content, or become plain text.
"""

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))

import reference  # noqa: E402, beside this file

SETTINGS = re.compile(r"<!-- settings: (\w+)\.(\w+) -->")
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
CODE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)
MOVED = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
"""Pages of the site that are files at the top of the repository."""


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, the README, the changelog and the shipped configs."""
    pages = {f"reference/{name}.md": text for name, text in reference.pages().items()}
    pages |= {page: (ROOT / source).read_text() for source, page in MOVED.items()}
    pages |= {f"configs/{path.name}": path.read_text() for path in sorted((ROOT / "configs").glob("*.yaml"))}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fill in tables of settings, and correct links that lead out of docs/."""
    uri = page.file.src_uri
    if uri == MOVED["README.md"]:
        page.meta["hide"] = ["navigation"]  # the front page stands for itself
    origin = next((source for source, moved in MOVED.items() if moved == uri), f"docs/{uri}")
    text = SETTINGS.sub(lambda match: reference.settings_table(*match.groups()), markdown)
    parts = CODE.split(text)
    parts[::2] = [LINK.sub(lambda match: _link(match, origin, uri, files), part) for part in parts[::2]]
    return "".join(parts)


def _link(match: re.Match[str], origin: str, uri: str, files: Files) -> str:
    """Return a link as it must be on the site; `origin` is the page's place in the repository."""
    text, target, anchor = match[1], match[2], match[3] or ""
    if re.match(r"\w+:", target) or origin.startswith("docs/reference/"):
        return match[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
    place = MOVED.get(path, path.removeprefix("docs/"))
    if files.get_file_from_path(place) is None:
        return text if text.startswith("`") or not (ROOT / path).exists() else f"`{text}`"
    return f"[{text}]({posixpath.relpath(place, posixpath.dirname(uri) or '.')}{anchor})"
