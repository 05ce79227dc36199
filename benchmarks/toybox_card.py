"""The Toybox card as a benchmark: the built-in models' quality on prompts that none was trained on."""

from __future__ import annotations


def run(quick: bool) -> dict[str, object]:
    """The card's numbers, the bars, and which are met."""
    from ..backbones.toybox import card

    numbers = card.card(quick=quick)
    return {"numbers": numbers, "bars": card.BARS, "met": card.verdicts(numbers)}
