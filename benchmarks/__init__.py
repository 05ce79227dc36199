"""What is measured: every effect, speed and exactness claim has a name and one command that prints it.

``python -m likeness.benchmarks NAME [--quick]`` runs one and writes ``benchmarks/results/NAME.json``;
without a name it lists them. ``docs/benchmarks.md`` is generated from the committed results (``table.py``).

To add one: a row in ``BENCHES`` (``__main__.py``) and a module here with

    def run(quick: bool) -> dict:
        return {
            "numbers": {...},  # everything measured: JSON values, intervals as [low, high]
            "bars": [bar("CLIP-T kept", value=0.95, op=">=", bar=0.9)],  # what must hold
            "seeds": [0, 1, 2],
        }

``quick=True`` is the same measurement, small enough to end within 5 minutes on 2 cores. Its results go to
``results/quick/``, which is not committed, so that they never stand where a full result belongs. Intervals
are ``scoring.metrics.bootstrap_interval`` over subjects or seeds. The module says how long it takes.
"""

from __future__ import annotations

import math
import operator
from typing import Any

OPS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}


def bar(name: str, *, value: float, op: str, bar: float) -> dict[str, Any]:
    """One thing that must hold, and whether it does. NaN never holds, and is written as no number."""
    known = math.isfinite(value)
    holds = known and bool(OPS[op](value, bar))
    return {"name": name, "value": value if known else None, "op": op, "bar": bar, "holds": holds}
