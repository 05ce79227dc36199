"""The graph surface: every node is a schema and one call."""

from __future__ import annotations

from . import (
    aligning,
    attractor,
    benchmarking,
    datasets,
    dreambench,
    generating,
    models,
    multisubject,
    native,
    rewards,
    scenes,
    scoring,
    segmenting,
    subjects,
    training,
)
from .host import IN_COMFYUI, ComfyExtension, io

NODES: list[type[io.ComfyNode]] = [
    *subjects.NODES,
    *segmenting.NODES,
    *models.NODES,
    *native.NODES,
    *training.NODES,
    *attractor.NODES,
    *rewards.NODES,
    *aligning.NODES,
    *generating.NODES,
    *scoring.NODES,
    *scenes.NODES,
    *multisubject.NODES,
    *datasets.NODES,
    *benchmarking.NODES,
    *dreambench.NODES,
]


class Likeness(ComfyExtension):
    """The pack, as ComfyUI asks for it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        if IN_COMFYUI:
            from . import layouts, routes, study

            routes.register()
            layouts.register()
            study.mount()
        return NODES
