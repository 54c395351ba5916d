"""Text in the page that stays text, whatever a config or an error says: in HTML, in a link, in a block of data."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, urlencode

# What terminals understand as colours, and every other control character but a line's end and a tab.
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
HOMES = re.compile(r"(?:(?<![\w/])/(?:home|Users)/|[A-Za-z]:\\Users\\)[^/\\\s\"':,;]+")


def clean(value: Any) -> str:
    """Text that can be shown and written: no control characters, nobody's name as part of a home folder."""
    text = ESCAPES.sub("", str(value))
    return HOMES.sub("~", CONTROLS.sub("\ufffd", text.replace("\r\n", "\n")))


def escaped(value: Any) -> str:
    """``clean`` text as HTML, between tags or between quotes."""
    return html.escape(clean(value))


def attribute(name: str, value: Any) -> str:
    """`` title="…"``; nothing for no text."""
    return f' {name}="{escaped(value)}"' if clean(value) else ""


def link(**state: Any) -> str:
    """The address of the page in a state, as page.js reads it: ``#where.batch=8``; ``__`` stands for the dot."""
    pairs = [(key.replace("__", "."), clean(value)) for key, value in state.items()]
    return html.escape("#" + urlencode(pairs, quote_via=quote))


def data(name: str, content: Any) -> str:
    """A block of JSON that no text in it can end: ``<``, ``>`` and ``&`` are written as JSON's own escapes."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return f'<script type="application/json" id="{name}">{text}</script>'


def filled(template: str, parts: Mapping[str, str]) -> str:
    """``template`` with every ``{{name}}`` replaced by its part; what stands in a part is not looked at again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def table(head: Iterable[str], rows: Iterable[Iterable[str]], caption: str) -> str:
    """A table of HTML cells whose first column names its rows; it scrolls by itself where the window is narrow."""
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = (list(row) for row in rows)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{c}</td>" for c in rest)}</tr>' for first, *rest in lines
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table>'
        f'<caption class="unseen">{caption}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    )
