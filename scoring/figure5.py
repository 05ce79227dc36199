"""Methods beside each other on a dataset: the table of totals, and a plot like the paper's Figure 5.

x: DINO, y: CLIP-I, the size of a bubble: CLIP-T; an arrow leads from a method to itself with the attractor
("TI" to "TI+").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from .heldout import COLUMNS, Evaluation
from .plots import Dot, scatter

RADII_PX = (6.0, 20.0)  # of the lowest and the highest CLIP-T shown


def bubbles(evaluations: Sequence[Evaluation]) -> str:
    """The plot as SVG. A method without a finite score is left out."""
    dots = [
        Dot(x=e.total["dino"], y=e.total["clip_i"], label=e.label, color=number, radius=radius)
        for number, (e, radius) in enumerate(zip(evaluations, _radii(evaluations), strict=True))
    ]
    by_label = {dot.label: dot for dot in dots}
    arrows = [(by_label[dot.label[:-1]], dot) for dot in dots if dot.label[:-1] in by_label and _plus(dot)]
    names = evaluations[0].names if evaluations else {"dino": "DINO", "clip_i": "CLIP-I", "clip_t": "CLIP-T"}
    return scatter(
        dots,
        title=f"Held-out scores; bubble size is {names['clip_t']}",
        x_label=names["dino"],
        y_label=names["clip_i"],
        arrows=arrows,
        height=420,
    )


def page(evaluations: Sequence[Evaluation]) -> str:
    """One HTML page: plot, totals with their intervals, and every subject."""
    head = "<!doctype html><meta charset=utf-8><title>Held-out benchmark</title>"
    style = (
        "<style>body{font:15px system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em}"
        "td,th{padding:.2em .8em;text-align:right}td:first-child,th:first-child{text-align:left}</style>"
    )
    notes = "".join(
        f"<p>{escape(e.summary())}. Compared with {escape(str(e.protocol.get('compared_with', '')))}.</p>"
        for e in evaluations
    )
    tables = "".join(f"<h2>{escape(e.label)}</h2>{_subjects(e)}" for e in evaluations)
    totals = _totals(evaluations)
    return f"{head}{style}<h1>Held-out benchmark</h1>{bubbles(evaluations)}{totals}{notes}{tables}\n"


def totals_csv(evaluations: Sequence[Evaluation]) -> str:
    """A line per method: mean and 95 % interval of every column."""
    heads = [f"{c},{c} low,{c} high" for c in COLUMNS]
    lines = [
        ",".join([e.label.replace(",", " "), *(f"{e.total[c]:.6f},{_interval(e, c)}" for c in COLUMNS)])
        for e in evaluations
    ]
    return "\n".join([",".join(["method", *heads]), *lines]) + "\n"


def _radii(evaluations: Sequence[Evaluation]) -> list[float]:
    values = [e.total["clip_t"] for e in evaluations]
    finite = [v for v in values if math.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    small, large = RADII_PX
    span = high - low or 1.0
    return [small + (large - small) * (v - low) / span if math.isfinite(v) else small for v in values]


def _plus(dot: Dot) -> bool:
    return dot.label.endswith("+")


def _interval(e: Evaluation, column: str) -> str:
    return ",".join(f"{v:.6f}" for v in e.intervals[column])


def _totals(evaluations: Sequence[Evaluation]) -> str:
    if not evaluations:
        return ""
    names = evaluations[0].names
    head = "".join(f"<th>{escape(text)}</th>" for text in ("method", *(names[c] for c in COLUMNS)))
    rows = "".join(
        f"<tr><td>{escape(e.label)}</td>"
        + "".join(f"<td>{_with_interval(e, c)}</td>" for c in COLUMNS)
        + "</tr>"
        for e in evaluations
    )
    return f"<table><tr>{head}</tr>{rows}</table>"


def _with_interval(e: Evaluation, column: str) -> str:
    low, high = e.intervals[column]
    interval = f" [{low:.3f}, {high:.3f}]" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{e.total[column]:.3f}{interval}"


def _subjects(e: Evaluation) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in ("subject", *(e.names[c] for c in COLUMNS)))
    rows = "".join(
        f"<tr><td>{escape(name)}</td>" + "".join(f"<td>{means[c]:.3f}</td>" for c in COLUMNS) + "</tr>"
        for name, means in e.subjects.items()
    )
    return f"<table><tr>{head}</tr>{rows}</table>"


def same_protocol(evaluations: Sequence[Evaluation]) -> bool:
    """Whether the numbers can stand beside each other: one dataset, one set of judges, one way of drawing."""
    keys = ("dataset", "encoders", "config", "base")
    first = evaluations[0].protocol if evaluations else {}
    return all(e.protocol.get(key) == first.get(key) for e in evaluations for key in keys)
