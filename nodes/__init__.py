"""The graph surface: every node is a schema and one call."""

from __future__ import annotations

from . import (
    aligning,
    attractor,
    generating,
    models,
    multisubject,
    native,
    scenes,
    scoring,
    subjects,
    training,
)
from .host import ComfyExtension, io

NODES: list[type[io.ComfyNode]] = [
    *subjects.NODES,
    *models.NODES,
    *native.NODES,
    *training.NODES,
    *attractor.NODES,
    *aligning.NODES,
    *generating.NODES,
    *scoring.NODES,
    *scenes.NODES,
    *multisubject.NODES,
]


class Likeness(ComfyExtension):
    """The pack, as ComfyUI asks for it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
