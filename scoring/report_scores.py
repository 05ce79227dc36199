"""The report's part on scorecards: means side by side where they compare, and the pictures behind them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

from . import plots
from .page import Figure, Html, chart, gallery, join, table, tag
from .scorecard import METRICS, Scorecard

COLORS = {"clip_t": 2, "clip_i": 1, "dino": 0}  # into plots.SERIES
UNBROKEN = str.maketrans({" ": "\u00a0", "-": "\u2011"})  # a name and its number stay on one line


def scores_section(cards: Sequence[Scorecard]) -> Html:
    """Tables, bars and pictures of the cards, by their judges."""
    return join(part for group in _comparable(cards) for part in _score_group(group))


def _comparable(cards: Sequence[Scorecard]) -> list[list[Scorecard]]:
    """Cards of the same judges stand together; others are not to be compared and get a table of their own."""
    groups: dict[str, list[Scorecard]] = {}
    for card in cards:
        metrics = card.protocol.get("metrics", {})
        groups.setdefault(repr(sorted((k, sorted(v.items())) for k, v in metrics.items())), []).append(card)
    return list(groups.values())


def _score_group(cards: Sequence[Scorecard]) -> Iterator[Html]:
    head = ["", "Pictures", *(cards[0].name(metric) for metric in METRICS)]
    rows = [
        [card.label or "scored", str(len(card.rows)), *(_mean(card, metric) for metric in METRICS)]
        for card in cards
    ]
    over = sorted({m.interval_over for c in cards for m in c.means.values()} - {"nothing"})
    yield table(
        head, rows, caption=f"Means with 95 % intervals over {' or '.join(over)}" if over else "Means"
    )
    for metric in METRICS:
        yield tag("h3", f"{cards[0].name(metric)}: {_meaning(metric, cards[0])}")
        yield chart(partial(_bars, cards, metric))
    for card in cards:
        if card.thumbnails:
            yield tag("h3", f"{card.label or 'Scored'}: the pictures")
            yield gallery(_scored_figures(card))


def _mean(card: Scorecard, metric: str) -> str:
    mean = card.means[metric]
    if not math.isfinite(mean.value):
        return "no number"
    interval = f" ({mean.low:.3f} to {mean.high:.3f})" if math.isfinite(mean.low) else ""
    skipped = f", {mean.skipped} skipped" if mean.skipped else ""
    return f"{mean.value:.3f}{interval}{skipped}"


def _bars(cards: Sequence[Scorecard], metric: str, width: int) -> str:
    means = [(card.label or "scored", card.means[metric]) for card in cards]
    return plots.bars(
        [
            plots.Bar(label=label, value=mean.value, low=mean.low, high=mean.high, color=COLORS[metric])
            for label, mean in means
        ],
        title=f"{cards[0].name(metric)} of each row",
        width=width,
    )


def _meaning(metric: str, card: Scorecard) -> str:
    kinds = sorted({str(r.get("kind", "")) for r in card.protocol.get("references", {}).values()})
    photos = f"the {kinds[0].replace(' ', '-')} photos" if len(kinds) == 1 else "the photos"
    return {
        "clip_t": "does the picture show what the prompt says",
        "clip_i": f"does it look like {photos}",
        "dino": f"is it the same individual as in {photos}",
    }[metric]


def _scored_figures(card: Scorecard) -> list[Figure]:
    figures = []
    for number, image in sorted(card.thumbnails.items()):
        row = card.rows[number]
        finite = [m for m in METRICS if math.isfinite(row.scores.get(m, math.nan))]
        scores = ", ".join(f"{card.name(m)} {row.scores[m]:.2f}".translate(UNBROKEN) for m in finite)
        figures.append(Figure(image=image, alt=f"drawn for: {row.prompt}", name=row.prompt, detail=scores))
    return figures
