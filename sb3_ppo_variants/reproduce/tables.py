"""Tables as text and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence


def number(value: float, form: str = ".2f") -> str:
    """A number in a cell, with a true minus sign; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:{form}}".replace("-", "−")


def signed(value: float) -> str:
    """The same, with its sign."""
    return number(value, "+.2f")


def short(value: float, digits: int = 4) -> str:
    """A return in a cell: so many significant digits, and all of those before the point."""
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
    return number(value, f".{decimals}f")


def plain(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right."""
    rows = [header, *cells]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_aligned(row, widths) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(row, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)])


def markdown(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table of GitHub's Markdown."""
    marks = ["---", *("---:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, marks, *cells])


def counted(number: int, noun: str) -> str:
    """A number of things, as text."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
