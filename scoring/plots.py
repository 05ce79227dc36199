"""Small charts as SVG text: curves, bars with error bars, scatter. No dependency, no script, any theme.

Colours are the CSS variables of the page (``--ink``, ``--series-1`` ...) with fallbacks, so that a chart
follows a dark or light page and also stands alone. Every text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

Point = tuple[float, float]

# (variable, fallback on light paper); the order is the order of series
SERIES = (
    ("--series-1", "#0b6e5f"),
    ("--series-2", "#a8611b"),
    ("--series-3", "#4f55b5"),
    ("--series-4", "#9c3a5b"),
    ("--series-5", "#54707f"),
)
INK, MUTED, GRID, PAPER = (
    "var(--ink,#1d1c1a)",
    "var(--muted,#6b6862)",
    "var(--line,#dedad1)",
    "var(--paper,#fbfaf7)",
)
FONT = 'font-family="system-ui,sans-serif" font-size="13"'
CHAR_PX = 7.9  # mean width of a character at 13 px, on the generous side
MAX_POINTS = 400  # of a drawn line: more than there are pixels to tell them apart


@dataclass(frozen=True, kw_only=True)
class Series:
    """A named line. ``faint`` is a thin line that gets no entry in the legend: raw data under its mean."""

    name: str
    points: Sequence[Point]
    color: int = 0  # index into SERIES
    style: Literal["line", "dashed", "faint"] = "line"
    markers: bool = False


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A vertical line with a word at its top: the best step, the turning point."""

    x: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One horizontal bar. ``low`` and ``high`` end its error bar; NaN draws none."""

    label: str
    value: float
    low: float = math.nan
    high: float = math.nan
    color: int = 0


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One point of a scatter plot, with the words that stand beside it."""

    x: float
    y: float
    label: str = ""
    color: int = 0
    radius: float = 5.0  # px


def curves(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str = "",
    marks: Sequence[Mark] = (),
    width: int = 680,
    height: int = 300,
) -> str:
    """Lines over a common x axis, with a legend, gaps where a value is not finite, and vertical marks."""
    finite = [p for s in series for p in s.points if _finite(p)]
    if not finite:
        return _empty(title, width)
    box = _Box.around(finite, width=width, height=height, top=54 if marks else 34)
    parts = [_axes(box, x_label, y_label), *_marks(box, marks)]
    parts += [_line(box, s) for s in sorted(series, key=lambda s: s.style != "faint")]
    parts.append(_legend([s for s in series if s.style != "faint"], box))
    return _svg("".join(parts), title, width, height)


def bars(items: Sequence[Bar], *, title: str, limit: float = math.nan, width: int = 680) -> str:
    """Horizontal bars from zero with error bars; ``limit`` draws a dashed line to measure them against."""
    numbers = [v for b in items for v in (b.value, b.low, b.high) if math.isfinite(v)]
    if not numbers:
        return _empty(title, width)
    reach = [*numbers, 0.0, *([limit] if math.isfinite(limit) else [])]
    ticks = nice_ticks(min(reach), max(reach), 5)
    label_px = min(max(len(b.label) for b in items) * CHAR_PX, width * 0.4)
    left, right, row = label_px + 12, width - 64.0, 34
    height = 34 + len(items) * row

    def x(value: float) -> float:
        return left + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (right - left)

    parts = [
        f'<line x1="{x(t):.1f}" x2="{x(t):.1f}" y1="8" y2="{height - 26}" stroke="{GRID}"/>'
        f'<text x="{x(t):.1f}" y="{height - 8}" text-anchor="middle" fill="{MUTED}">'
        f"{_number(t, ticks)}</text>"
        for t in ticks
    ]
    parts += [_bar(bar, 8 + i * row, x, left, label_px) for i, bar in enumerate(items)]
    if math.isfinite(limit):
        parts.append(
            f'<line x1="{x(limit):.1f}" x2="{x(limit):.1f}" y1="4" y2="{height - 26}" stroke="{INK}" '
            'stroke-width="1.5" stroke-dasharray="4 3"/>'
        )
    return _svg("".join(parts), title, width, height)


def scatter(
    dots: Sequence[Dot],
    *,
    title: str,
    x_label: str,
    y_label: str,
    arrows: Sequence[tuple[Dot, Dot]] = (),
    width: int = 680,
    height: int = 340,
) -> str:
    """Labelled points: one score against another, with arrows from some to others."""
    finite = [dot for dot in dots if _finite((dot.x, dot.y))]
    if not finite:
        return _empty(title, width)
    box = _Box.around([(d.x, d.y) for d in finite], width=width, height=height, top=34)
    parts = [_axes(box, x_label, y_label)]
    parts += [_arrow(box, a, b) for a, b in arrows if _finite((a.x, a.y)) and _finite((b.x, b.y))]
    for dot in finite:
        x, y = box.x(dot.x), box.y(dot.y)
        end = x + 10 + len(dot.label) * CHAR_PX > width
        anchor, shift = ("end", -dot.radius - 4) if end else ("start", dot.radius + 4)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{dot.radius:g}" fill="{_color(dot.color)}">'
            f"<title>{escape(dot.label)}: {dot.x:.3f}, {dot.y:.3f}</title></circle>"
            f'<text x="{x + shift:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}" fill="{INK}">'
            f"{escape(dot.label)}</text>"
        )
    return _svg("".join(parts), title, width, height)


def smoothed(points: Sequence[Point], *, share: float = 0.05) -> list[Point]:
    """An exponential moving mean over about ``share`` of the points, without its start-up bias."""
    weight = 1 - 1 / max(1.0, share * len(points))
    total = norm = 0.0
    out = []
    for x, y in points:
        if math.isfinite(y):
            total, norm = weight * total + y, weight * norm + 1
            out.append((x, total / norm))
    return out


def thinned(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most about ``most`` points: of every stretch the lowest and the highest, so that spikes stay."""
    if len(points) <= most:
        return list(points)
    stretch = math.ceil(len(points) / (most / 2))
    kept: list[Point] = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        finite = [p for p in part if _finite(p)] or part[:1]
        kept += sorted({min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])})
    return kept


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) that enclose ``low`` and ``high``."""
    if high - low < 1e-12 * max(1.0, abs(low), abs(high)):
        low, high = low - max(abs(low), 1.0) * 0.05, high + max(abs(high), 1.0) * 0.05
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


# --- drawing ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Box:
    """Where data land: the plot's edges in pixels and the ticks that span them."""

    left: float
    right: float
    top: float
    bottom: float
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    x_range: tuple[float, float]

    @classmethod
    def around(cls, points: Sequence[Point], *, width: int, height: int, top: int) -> _Box:
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        y_ticks = nice_ticks(min(ys), max(ys), 4)
        x_ticks = nice_ticks(min(xs), max(xs), 6 if width > 500 else 4)
        span = (min(xs), max(xs)) if max(xs) > min(xs) else (x_ticks[0], x_ticks[-1])
        left = 14 + max(len(_number(t, y_ticks)) for t in y_ticks) * CHAR_PX
        inner = [t for t in x_ticks if span[0] <= t <= span[1]]
        return cls(
            left=left,
            right=width - 16,
            top=top,
            bottom=height - 44,
            x_ticks=inner,
            y_ticks=y_ticks,
            x_range=span,
        )

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)


def _axes(box: _Box, x_label: str, y_label: str) -> str:
    parts = []
    for tick in box.y_ticks:
        y = box.y(tick)
        parts.append(
            f'<line x1="{box.left:.1f}" x2="{box.right:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>'
            f'<text x="{box.left - 8:.1f}" y="{y + 4:.1f}" text-anchor="end" fill="{MUTED}">'
            f"{_number(tick, box.y_ticks)}</text>"
        )
    for tick in box.x_ticks:
        anchor = "end" if box.x(tick) > box.right - 12 else "middle"
        parts.append(
            f'<text x="{box.x(tick):.1f}" y="{box.bottom + 18:.1f}" text-anchor="{anchor}" fill="{MUTED}">'
            f"{_number(tick, box.x_ticks)}</text>"
        )
    middle = (box.left + box.right) / 2
    parts.append(
        f'<text x="{middle:.1f}" y="{box.bottom + 37:.1f}" text-anchor="middle" fill="{MUTED}">'
        f"{escape(x_label)}</text>"
    )
    if y_label:
        parts.append(
            f'<text x="{box.right:.1f}" y="16" text-anchor="end" fill="{MUTED}">{escape(y_label)}</text>'
        )
    return "".join(parts)


def _marks(box: _Box, marks: Sequence[Mark]) -> list[str]:
    """Dashed verticals; a second mark's word sits a line lower where the two would touch."""
    parts: list[str] = []
    taken = [-math.inf, -math.inf]
    for mark in sorted(marks, key=lambda m: m.x):
        if not box.x_range[0] <= mark.x <= box.x_range[1]:
            continue
        x, half = box.x(mark.x), len(mark.text) * CHAR_PX / 2
        center = min(max(x, box.left + half), box.right - half)
        line = 0 if center - half > taken[0] else 1
        taken[line] = center + half + 6
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{box.top + line * 16 - 10:.1f}" y2="{box.bottom:.1f}" '
            f'stroke="{INK}" stroke-width="1.2" stroke-dasharray="3 3"/>'
            f'<text x="{center:.1f}" y="{box.top - 15 + line * 16:.1f}" text-anchor="middle" fill="{INK}" '
            f'stroke="{PAPER}" stroke-width="4" paint-order="stroke">{escape(mark.text)}</text>'
        )
    return parts


def _line(box: _Box, series: Series) -> str:
    color = _color(series.color)
    path, pen_up = [], True
    for point in thinned(series.points):
        if _finite(point):
            path.append(f"{'M' if pen_up else 'L'}{box.x(point[0]):.1f} {box.y(point[1]):.1f}")
        pen_up = not _finite(point)
    stroke = {"line": 'stroke-width="2.2"', "dashed": 'stroke-width="2" stroke-dasharray="6 4"'}
    style = stroke.get(series.style, 'stroke-width="1" opacity="0.35"')
    parts = [f'<path d="{"".join(path)}" fill="none" stroke="{color}" stroke-linejoin="round" {style}/>']
    if series.markers or len(path) == 1:
        parts += [
            f'<circle cx="{box.x(x):.1f}" cy="{box.y(y):.1f}" r="3.4" fill="{color}">'
            f"<title>{escape(series.name)}, {_plain(x)}: {y:.3f}</title></circle>"
            for x, y in series.points
            if _finite((x, y))
        ]
    return "".join(parts)


def _arrow(box: _Box, start: Dot, end: Dot) -> str:
    """A line that ends at the rim of ``end``, with two barbs."""
    x0, y0, x1, y1 = box.x(start.x), box.y(start.y), box.x(end.x), box.y(end.y)
    angle = math.atan2(y1 - y0, x1 - x0)
    x1, y1 = x1 - end.radius * math.cos(angle), y1 - end.radius * math.sin(angle)
    barbs = "".join(
        f"M{x1:.1f} {y1:.1f}L{x1 - 9 * math.cos(angle + turn):.1f} {y1 - 9 * math.sin(angle + turn):.1f}"
        for turn in (-0.4, 0.4)
    )
    path = f"M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}{barbs}"
    return f'<path d="{path}" fill="none" stroke="{_color(3)}" stroke-width="2"/>'


def _legend(series: Sequence[Series], box: _Box) -> str:
    parts, x = [], box.left
    for item in series if len(series) > 1 else ():
        dash = ' stroke-dasharray="6 4"' if item.style == "dashed" else ""
        parts.append(
            f'<line x1="{x:.1f}" x2="{x + 20:.1f}" y1="12" y2="12" stroke="{_color(item.color)}" '
            f'stroke-width="2.6"{dash}/>'
            f'<text x="{x + 26:.1f}" y="16" fill="{INK}">{escape(item.name)}</text>'
        )
        x += 26 + len(item.name) * CHAR_PX + 20
    return "".join(parts)


def _bar(bar: Bar, y: float, x: Callable[[float], float], left: float, label_px: float) -> str:
    name = bar.label
    if len(name) * CHAR_PX > label_px + 1:
        name = name[: max(1, int(label_px / CHAR_PX) - 1)] + "\u2026"
    parts = [
        f'<text x="{left - 12:.1f}" y="{y + 17:.1f}" text-anchor="end" fill="{INK}">{escape(name)}'
        f"<title>{escape(bar.label)}</title></text>"
    ]
    if math.isfinite(bar.value):
        start, end = sorted((x(0.0), x(bar.value)))
        parts.append(
            f'<rect x="{start:.1f}" y="{y + 3:.1f}" width="{max(end - start, 1):.1f}" height="18" rx="2" '
            f'fill="{_color(bar.color)}"/>'
        )
    tip = x(bar.value) if math.isfinite(bar.value) else left
    if math.isfinite(bar.low) and math.isfinite(bar.high):
        a, b, middle = x(bar.low), x(bar.high), y + 12
        tip = max(tip, b)
        parts.append(
            f'<path d="M{a:.1f} {middle - 5}V{middle + 5}M{a:.1f} {middle}H{b:.1f}M{b:.1f} {middle - 5}'
            f'V{middle + 5}" fill="none" stroke="{INK}" stroke-width="1.6"/>'
        )
    value = f"{bar.value:.3f}" if math.isfinite(bar.value) else "n/a"
    parts.append(f'<text x="{tip + 8:.1f}" y="{y + 17:.1f}" fill="{INK}">{value}</text>')
    return "".join(parts)


def _svg(content: str, title: str, width: int, height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:g}" role="img" '
        f'aria-label="{escape(title)}" {FONT}>{content}</svg>'
    )


def _empty(title: str, width: int) -> str:
    text = f'<text x="{width / 2:g}" y="34" text-anchor="middle" fill="{MUTED}">no data</text>'
    return _svg(text, f"{title}: no data", width, 60)


def _color(index: int) -> str:
    variable, fallback = SERIES[index % len(SERIES)]
    return f"var({variable},{fallback})"


def _number(value: float, ticks: Sequence[float]) -> str:
    """As many digits as tell the ticks apart."""
    step = abs(ticks[1] - ticks[0]) if len(ticks) > 1 else 1.0
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    return _plain(value) if digits > 6 else f"{value:.{digits}f}"


def _plain(value: float) -> str:
    return f"{value:g}"


def _finite(point: Point) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])
