"""Tables in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence


def markdown_row(cells: Sequence[str]) -> str:
    """One row."""
    return f"| {' | '.join(cells)} |"


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[str] = ()) -> list[str]:
    """Lines of a table whose columns are aligned to the right, but for those headed as in `left`."""
    alignment = ["---" if heading in left else "---:" for heading in headings]
    return [markdown_row(headings), markdown_row(alignment), *map(markdown_row, rows)]
