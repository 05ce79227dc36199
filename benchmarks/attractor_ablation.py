"""The attractor's parts, on Toybox: the six schedules of L_InfoNCE (Figure 7), and each loss left out.

TI+ on six subjects whose training photos share one background, with one seed; photos, steps and measures are
those of ``attractor.py``. Plain TI stands beside it. About 20 minutes on 2 cores.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from ..trainers.attractor import SCHEDULES, Attractor
from .attractor import SEEDS, SETTINGS, SUBJECTS, is_shared, row_of
from .cases import measured

LOSSES = ("subject", "background", "joint", "contrastive")
ABLATED = 6  # subjects


def variants() -> dict[str, Mapping[str, Any] | None]:
    """What the attractor has other than its defaults; None is no attractor."""
    default = Attractor().schedule
    schedules = {f"schedule {name}": {} if name == default else {"schedule": name} for name in SCHEDULES}
    return {"TI": None, **schedules, **{f"without {name}": {f"{name}_weight": 0.0} for name in LOSSES}}


def run(quick: bool) -> dict[str, Any]:
    shared = [place for place in range(len(SUBJECTS)) if is_shared(place)]
    places, steps = (shared[:1], 6) if quick else (shared[:ABLATED], int(SETTINGS["steps"]))
    table = {}
    for name, changes in list(variants().items())[:: 4 if quick else 1]:
        rows = measured(
            "attractor", row_of, [(place, "textual_inversion", SEEDS[0], steps, changes) for place in places]
        )
        columns = [column for column in rows[0] if column not in ("subject", "shared", "seed")]
        table[name] = {column: statistics.fmean(row[column] for row in rows) for column in columns}
    return {"numbers": {"table": table}, "bars": [], "seeds": [SEEDS[0]]}
