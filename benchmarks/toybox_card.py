"""The Toybox card as a benchmark: the built-in models' quality on prompts that none was trained on.

Full: about 3 minutes on 2 cores.
"""

from __future__ import annotations

from typing import Any

from . import bar

SEED = 0


def run(quick: bool) -> dict[str, Any]:
    """The card's numbers, and its bars."""
    from ..backbones.toybox import card

    numbers = card.card(quick=quick, seed=SEED)
    bars = [bar(name, value=numbers[name], op=">=", bar=least) for name, least in card.BARS.items()]
    return {"numbers": numbers, "bars": bars, "seeds": [SEED]}
