"""Pictures inside an HTML page: SVG elements in the colors of the page, or PNG images where an SVG would be large."""

from __future__ import annotations

import base64
import re

COLORS = {"#000000": "currentColor", "#ffffff": "none", "#d9d9d9": "#88888880"}  # ink, paper, and `style.GRAY`


def svg_element(content: bytes, name: str) -> str:
    """Convert an SVG file to an element of a page, light or dark.

    Args:
        content: the file, drawn in `style.style`.
        name: prefix of its ids, which makes them unique in the page.
    """
    text = content.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' width="[\d.]+pt"| height="[\d.]+pt"| xmlns(?::xlink)?="[^"]*"', "", text, count=4)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    return re.sub("|".join(COLORS), lambda match: COLORS[match[0]], text)


def png_element(content: bytes, name: str) -> str:
    """Embed a PNG file."""
    return f'<img alt="{name}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'
