from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from likeness.scoring import plots
from likeness.scoring.plots import Bar, Dot, Mark, Series

HOSTILE = "<script>alert(1)</script>\"' & ]]>"
NAN = math.nan


def parse(svg: str) -> ElementTree.Element:
    assert "script" not in {e.tag.split("}")[1] for e in ElementTree.fromstring(svg).iter()}
    assert not re.search(r"\bnan\b|\binf\b", svg)
    return ElementTree.fromstring(svg)


def texts(svg: str) -> list[str]:
    return ["".join(e.itertext()) for e in parse(svg).iter() if e.tag.endswith("}text")]


@given(
    st.lists(st.tuples(st.integers(0, 5000), st.floats(allow_nan=True, width=32)), max_size=30),
    st.sampled_from([340, 680]),
)
def test_any_numbers_make_a_well_formed_chart(points: list[tuple[int, float]], width: int) -> None:
    svg = plots.curves(
        [Series(name="a", points=sorted(points)), Series(name="b", points=[], style="dashed")],
        title="t",
        x_label="x",
        marks=[Mark(x=10, text="here")],
        width=width,
    )
    parse(svg)


def test_every_text_is_escaped() -> None:
    series = [Series(name=HOSTILE, points=[(0, 1), (1, 2)], markers=True), Series(name="b", points=[(0, 1)])]
    marks = [Mark(x=1, text=HOSTILE)]
    for svg in (
        plots.curves(series, title=HOSTILE, x_label=HOSTILE, y_label=HOSTILE, marks=marks),
        plots.bars([Bar(label=HOSTILE, value=0.5)], title=HOSTILE),
        plots.scatter([Dot(x=1, y=1, label=HOSTILE)], title=HOSTILE, x_label=HOSTILE, y_label=HOSTILE),
    ):
        assert parse(svg).get("aria-label") == HOSTILE
        assert "<script" not in svg


def test_points_land_where_they_belong() -> None:
    svg = plots.curves([Series(name="a", points=[(0, 0.0), (5, 1.0), (10, 0.5)])], title="t", x_label="x")
    path = next(e.get("d") for e in parse(svg).iter() if e.tag.endswith("}path"))
    numbers = [float(n) for n in re.findall(r"[\d.]+", path or "")]
    xs, ys = numbers[::2], numbers[1::2]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2) and ys[0] > ys[2] > ys[1]
    assert ys[2] == pytest.approx((ys[0] + ys[1]) / 2, abs=0.2)


def test_a_gap_stays_a_gap() -> None:
    svg = plots.curves([Series(name="a", points=[(0, 1), (1, NAN), (2, 2), (3, 3)])], title="t", x_label="x")
    path = next(e.get("d") or "" for e in parse(svg).iter() if e.tag.endswith("}path"))
    assert path.count("M") == 2 and path.count("L") == 1


def test_no_data_says_so() -> None:
    for svg in (
        plots.curves([Series(name="a", points=[(0, NAN)])], title="t", x_label="x"),
        plots.bars([], title="t"),
        plots.scatter([], title="t", x_label="x", y_label="y"),
    ):
        assert texts(svg) == ["no data"]


def test_bars_show_value_and_interval() -> None:
    svg = plots.bars(
        [Bar(label="a", value=0.5, low=0.4, high=0.7), Bar(label="b", value=NAN)], title="t", limit=0.6
    )
    assert {"0.500", "n/a"} <= set(texts(svg)) and "stroke-dasharray" in svg
    assert sum(e.tag.endswith("}rect") for e in parse(svg).iter()) == 1


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(2, 8))
def test_ticks_enclose_the_data_and_are_few(low: float, span: float, about: int) -> None:
    ticks = plots.nice_ticks(low, low + span, about)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + step * 1e-6 and ticks[-1] >= low + span - step * 1e-6
    assert 2 <= len(ticks) <= 2 * about + 3


def test_smoothing_and_thinning() -> None:
    assert plots.smoothed([(1, 2.0), (2, 2.0), (3, NAN), (4, 2.0)]) == [(1, 2.0), (2, 2.0), (4, 2.0)]
    spike = [(i, 0.0 if i != 5003 else 9.0) for i in range(10000)]
    thin = plots.thinned(spike)
    assert len(thin) <= plots.MAX_POINTS and (5003, 9.0) in thin
