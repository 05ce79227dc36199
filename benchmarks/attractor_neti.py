"""``attractor.py`` for NeTI: NeTI against NeTI+, same subjects, photos, steps and measures.

A full run takes two hours on 2 cores: of every prompt there is one text pass for each layer. The gain differs
much more between subjects than between seeds.
"""

from __future__ import annotations

from typing import Any

from .attractor import effect


def run(quick: bool) -> dict[str, Any]:
    return effect("neti", "NeTI", quick)
