"""Numbers and words as files hold them."""

from __future__ import annotations

import csv
import io
import math

import pytest
from likeness.core.tables import csv_text, finite, not_a_formula, plain


def test_rows_are_read_back_as_they_are() -> None:
    rows = [["a", 'red, "quoted"\nnext'], [1, None], ["", 0.5]]
    text = csv_text(rows)
    assert text.startswith('a,"red, ""quoted""\nnext"\n1,\n') and csv_text(rows) == text
    assert list(csv.reader(io.StringIO(text, newline="")))[1:] == [["1", ""], ["", "0.5"]]


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@x", "\tx", "\rx"])
def test_no_cell_begins_like_a_formula(text: str) -> None:
    assert not_a_formula(text) == f"'{text}" and not_a_formula(f"a{text}") == f"a{text}"


def test_no_number_is_null_in_json_and_said_in_words() -> None:
    assert finite({"a": [1, math.nan, (math.inf, 2.0)], 3: "x"}) == {"a": [1, None, [None, 2.0]], "3": "x"}
    assert (plain(0.12345), plain(1, 0), plain(math.nan)) == ("0.123", "1", "n/a")
