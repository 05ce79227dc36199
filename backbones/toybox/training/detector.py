"""The grounding detector, in OWL-ViT's role: trained on the renderer's own boxes and masks, of the pictures
that the others learn from and of crowds: as many things as a composed scene has, of every size.

L = BCE of "the middle of a <noun> lies in this cell"  +  (1 - IoU) + |sides| / 16 at the cells that do
    + BCE of "this pixel belongs to a thing"
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import render, world
from ..nets import Detections, Detector
from . import data
from .judge import save, soften, warm_trunk
from .loop import Schedule, device

NUM_PICTURES, NUM_CROWDS = 40_000, 40_000
CROWDED = 3 / 8  # of a batch
MOST_THINGS = 4
GRID = world.SIZE_PX // Detector.cell_px


@dataclass
class DetectorPart:
    state_dir: Path
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=4000, batch=64, lr=4e-3, warmup=30, weight_decay=0.02, ema=0.99, save_every=100
        )
    )
    name: str = "detector"
    exported: str = "detector/model.safetensors"
    num_pictures: int = NUM_PICTURES
    num_crowds: int = NUM_CROWDS

    def build(self) -> nn.Module:
        plain, crowds = self.num_pictures, self.num_crowds
        self.images = data.images(self.state_dir)
        self.boxes, self.masks = cached_truth(
            self.state_dir / f"things-{plain}.npz", world.sample_picture, plain
        )
        self.crowds = data.cached_images(self.state_dir / f"crowds-{crowds}.npy", crowds, _render_crowds)
        self.crowd_boxes, self.crowd_masks = cached_truth(
            self.state_dir / f"crowd-things-{crowds}.npz", world.crowd, crowds
        )
        model = Detector()
        warm_trunk(self.state_dir, model.trunk)
        return model

    def loss(self, model: nn.Module, step: int) -> dict[str, Tensor]:
        seed, crowded = self.schedule.seed + 5, round(self.schedule.batch * CROWDED)
        picks = data.batch_indices(seed, step, self.schedule.batch - crowded, self.num_pictures)
        more = data.batch_indices(seed + 1, step, crowded, self.num_crowds)
        pictures = np.concatenate([self.images[picks], self.crowds[more]])
        boxes = np.concatenate([self.boxes[picks], self.crowd_boxes[more]])
        masks = np.concatenate([self.masks[picks], self.crowd_masks[more]])
        return detector_loss(model(soften(data.to_tensor(pictures).to(device()))), boxes, masks)

    def export(self, model: nn.Module, weights_dir: Path) -> None:
        save(model, weights_dir / "detector", without="trunk.")


def _render_crowds(start: int, stop: int) -> NDArray[np.uint8]:
    return np.stack([render.image(world.crowd(number)) for number in range(start, stop)])


def cached_truth(
    path: Path, picture_of: Callable[[int], world.Picture], count: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Of pictures 0..count-1: a row of (noun index or -1, x0, y0, x1, y1) for each thing, and which pixels
    belong to things, (count, 64, 64)."""
    if not path.exists():
        rows = np.full((count, MOST_THINGS, 5), -1, dtype=np.int64)
        masks = np.zeros((count, world.SIZE_PX, world.SIZE_PX), bool)
        for number in range(count):
            picture = picture_of(number)
            drawn = render.render(picture)
            masks[number] = np.any(drawn.masks, axis=0)
            for i, box in enumerate(drawn.boxes):
                rows[number, i] = [world.NOUNS.index(picture.things[i].noun), *box]
        np.savez_compressed(path.with_suffix(".part.npz"), boxes=rows, masks=masks)
        path.with_suffix(".part.npz").replace(path)
    with np.load(path) as found:
        return found["boxes"], found["masks"]


def detector_loss(
    seen: Detections, boxes_BN5: NDArray[np.int64], masks_BHW: NDArray[np.bool_]
) -> dict[str, Tensor]:
    """The loss above; ``iou`` is the mean overlap at the right cells."""
    scores, sides, shape = seen
    rows = torch.from_numpy(boxes_BN5).to(scores.device)
    picture, which = torch.nonzero((rows[..., 0] >= 0) & (rows[..., 3] > rows[..., 1]), as_tuple=True)
    noun, box = rows[picture, which, 0], rows[picture, which, 1:].float()
    middle = (box[:, :2] + box[:, 2:]) / 2
    cell = (middle / Detector.cell_px).long().clamp(max=GRID - 1)
    target = torch.zeros_like(scores)
    target[picture, noun, cell[:, 1], cell[:, 0]] = 1
    found = F.binary_cross_entropy_with_logits(
        scores, target, pos_weight=torch.tensor(5.0, device=scores.device)
    )
    middle_px = (cell.float() + 0.5) * Detector.cell_px
    told = sides[picture, :, cell[:, 1], cell[:, 0]]
    wanted = torch.cat([middle_px - box[:, :2], box[:, 2:] - middle_px], dim=1)
    iou = _iou(told, wanted)
    outlined = F.binary_cross_entropy_with_logits(shape, torch.from_numpy(masks_BHW).to(shape))
    loss = found * 100 + (1 - iou).mean() + (told - wanted).abs().mean() / 16 + outlined
    return {"loss": loss, "found": found.detach(), "iou": iou.detach().mean(), "shape": outlined.detach()}


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """Overlap of boxes given as distances to the four sides from one inner point."""
    wide = torch.minimum(a[:, 0], b[:, 0]) + torch.minimum(a[:, 2], b[:, 2])
    high = torch.minimum(a[:, 1], b[:, 1]) + torch.minimum(a[:, 3], b[:, 3])
    both = wide.clamp(min=0) * high.clamp(min=0)
    area = (a[:, 0] + a[:, 2]) * (a[:, 1] + a[:, 3]) + (b[:, 0] + b[:, 2]) * (b[:, 1] + b[:, 3])
    return both / (area - both).clamp(min=1e-6)
