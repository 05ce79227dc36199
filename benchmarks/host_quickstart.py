"""The quickstart as shipped, by the embedded runner, ``comfy run``, ``likeness run --server`` and the page.

``host_workflow`` does this with every workflow in few steps. Ten minutes on a quiet machine; quick: a few
steps here too.
"""

from __future__ import annotations

from typing import Any

from .host_workflow import QUICKSTART, measured


def run(quick: bool) -> dict[str, Any]:
    return measured([QUICKSTART.stem], few=quick)
