"""Numbers and words as files hold them: CSV that any spreadsheet opens, JSON that has no NaN."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """A line for each row. Equal rows give equal text."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def not_a_formula(text: str) -> str:
    """A spreadsheet runs a cell that begins like a formula; prompts come from anywhere."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def plain(value: float, digits: int = 3) -> str:
    """A number in words."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "n/a"


def finite(value: Any) -> Any:
    """As JSON holds it: null where there is no number, however deep."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
