"""What is wrong with the cells of a sweep, in lines for people: a kind each, and the cells it concerns."""

from __future__ import annotations

from normbench.files import legible

NAMES, DETAIL = 8, 60  # names in a line, characters beside a name


class Problems:
    """Collects them by kind, and tells them in the order in which the kinds were met."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}

    def add(self, kind: str, name: str, detail: str = "") -> None:
        """``name``: the folder's; ``detail``: what was found in it."""
        short = legible(detail)
        short = short if len(short) <= DETAIL else short[: DETAIL - 1] + "…"
        self._found.setdefault(kind, []).append(legible(name) + (f" ({short})" if short else ""))

    def told(self) -> list[str]:
        """``cells of another schema, left out (2): a (schema 99), b (schema 98)``."""
        return [f"{kind} ({len(names)}): {_listed(names)}" for kind, names in self._found.items()]


def _listed(names: list[str]) -> str:
    more = len(names) - NAMES
    return ", ".join(names[:NAMES]) + (f" and {more} more" if more > 0 else "")
