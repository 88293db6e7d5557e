"""Tables in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def markdown_row(cells: Sequence[str]) -> str:
    """One row."""
    return f"| {' | '.join(cells)} |"


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: frozenset[int]) -> list[str]:
    """Lines of a table whose columns are aligned to the right, but for those numbered in `left`."""
    alignment = ["---" if number in left else "---:" for number in range(len(headings))]
    return [markdown_row(headings), markdown_row(alignment), *map(markdown_row, rows)]
