"""Lines of a table that a spreadsheet opens."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any


def csv_line(cells: Sequence[Any]) -> str:
    """One line. Cells that a spreadsheet would take for a formula get an apostrophe in front."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerow([_harmless(str(cell)) for cell in cells])
    return out.getvalue()


def _harmless(cell: str) -> str:
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell
