"""MkDocs hook: make pages that need no script when they are viewed."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_ROLE = re.compile(r":(?:attr|class|exc|func|meth|mod):(?=<code>)")


def on_page_content(content: str, **_: Any) -> str:
    """Turn the LaTeX that pymdownx.arithmatex marked into MathML, and drop Sphinx roles in front of names."""
    return _ROLE.sub("", _FORMULA.sub(_mathml, content))


def _mathml(match: re.Match[str]) -> str:
    display = "block" if match[1] == "div" else "inline"
    return convert(html.unescape(match[2]).strip(), display=display)
