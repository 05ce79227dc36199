"""Methods beside each other on a benchmark: the table of totals, and a plot like the paper's Figure 5.

x: DINO, y: CLIP-I, the size of a bubble: CLIP-T; an arrow leads from a method to itself with the attractor
("TI" to "TI+").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..core.tables import plain
from .evaluation import Evaluation
from .page import Html, details, join, section, table, tag
from .page import page as frame
from .plots import Dot, scatter
from .published import published_table

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
        title=f"Scores; bubble size is {names['clip_t']}",
        x_label=names["dino"],
        y_label=names["clip_i"],
        arrows=arrows,
        height=420,
    )


def page(evaluations: Sequence[Evaluation], *, published: str = "") -> str:
    """One HTML page: plot, totals with their intervals, every subject. ``published`` names one of
    ``published.PUBLISHED``: the paper's own numbers then follow in a table of their own."""
    sections = {
        "plot": ("Plot", Html(bubbles(evaluations))),
        "totals": ("Totals", join([_totals(evaluations), _notes(evaluations)])),
        "published": ("As published", published_table(published) if published else None),
        "subjects": ("Every subject", join(_subjects(e) for e in evaluations)),
    }
    kept = {anchor: (name, body) for anchor, (name, body) in sections.items() if body is not None}
    return frame(
        title="Benchmark",
        lede="",
        contents={anchor: name for anchor, (name, _) in kept.items()},
        body=join(section(name, anchor, body) for anchor, (name, body) in kept.items()),
        footer="Scores of different judges are not comparable. Made by Likeness.",
    )


def totals_csv(evaluations: Sequence[Evaluation]) -> str:
    """A line per method: mean and 95 % interval of every column."""
    columns = _columns(evaluations)
    heads = [f"{c},{c} low,{c} high" for c in columns]
    lines = [
        ",".join([e.label.replace(",", " "), *(f"{e.total[c]:.6f},{_interval(e, c)}" for c in columns)])
        for e in evaluations
    ]
    return "\n".join([",".join(["method", *heads]), *lines]) + "\n"


def _columns(evaluations: Sequence[Evaluation]) -> Mapping[str, str]:
    """Columns and their headings; ``same_protocol`` sees to it that all have the same."""
    return evaluations[0].names if evaluations else {}


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


def _totals(evaluations: Sequence[Evaluation]) -> Html:
    columns = _columns(evaluations)
    rows = [[e.label, *(_with_interval(e, c) for c in columns)] for e in evaluations]
    return table(["method", *columns.values()], rows, caption="Means over all pictures, 95 % over subjects")


def _notes(evaluations: Sequence[Evaluation]) -> Html:
    return join(
        tag("p", f"{e.summary()}. Compared with {e.protocol.get('compared_with', '')}.", class_="note")
        for e in evaluations
    )


def _with_interval(e: Evaluation, column: str) -> str:
    low, high = e.intervals[column]
    interval = f" [{low:.3f}, {high:.3f}]" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{plain(e.total[column])}{interval}"


def _subjects(e: Evaluation) -> Html:
    rows = [[name, *(plain(means[c]) for c in e.names)] for name, means in e.subjects.items()]
    return details(e.label, table(["subject", *e.names.values()], rows, caption=e.label))


def same_protocol(evaluations: Sequence[Evaluation]) -> bool:
    """Whether the numbers can stand beside each other: one dataset, one set of judges, one way of drawing."""
    keys = ("dataset", "encoders", "config", "base")
    first = evaluations[0].protocol if evaluations else {}
    return all(e.protocol.get(key) == first.get(key) for e in evaluations for key in keys)
