"""The grounding detector, in OWL-ViT's role: trained on the renderer's own boxes and masks.

L = BCE of "the middle of a <noun> lies in this cell"  +  (1 - IoU) + |sides| / 16 at the cells that do
    + BCE of "this pixel belongs to a thing"
"""

from __future__ import annotations

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

NUM_PICTURES = 20_000
GRID = world.SIZE_PX // Detector.cell_px


@dataclass
class DetectorPart:
    state_dir: Path
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=1000, batch=64, lr=4e-3, warmup=30, weight_decay=0.02, ema=0.99, save_every=100
        )
    )
    name: str = "detector"
    exported: str = "detector/model.safetensors"
    num_pictures: int = NUM_PICTURES

    def build(self) -> nn.Module:
        self.images = data.images(self.state_dir)
        self.boxes, self.masks = cached_truth(self.state_dir, self.num_pictures)
        model = Detector()
        warm_trunk(self.state_dir, model.trunk)
        return model

    def loss(self, model: nn.Module, step: int) -> dict[str, Tensor]:
        picks = data.batch_indices(self.schedule.seed + 5, step, self.schedule.batch, self.num_pictures)
        seen = model(soften(data.to_tensor(self.images[picks]).to(device())))
        return detector_loss(seen, self.boxes[picks], self.masks[picks])

    def export(self, model: nn.Module, weights_dir: Path) -> None:
        save(model, weights_dir / "detector", without="trunk.")


def cached_truth(state_dir: Path, count: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Per training picture two rows of (noun index or -1, x0, y0, x1, y1), and which pixels belong to things,
    (count, 64, 64)."""
    path = state_dir / f"truth-{count}.npz"
    if not path.exists():
        rows = np.full((count, 2, 5), -1, dtype=np.int64)
        masks = np.zeros((count, world.SIZE_PX, world.SIZE_PX), bool)
        for number in range(count):
            picture = world.sample_picture(number)
            drawn = render.render(picture)
            masks[number] = np.any(drawn.masks, axis=0)
            for i, box in enumerate(drawn.boxes):
                rows[number, i] = [world.NOUNS.index(picture.things[i].noun), *box]
        np.savez_compressed(path.with_suffix(".part.npz"), boxes=rows, masks=masks)
        path.with_suffix(".part.npz").replace(path)
    with np.load(path) as found:
        return found["boxes"], found["masks"]


def detector_loss(
    seen: Detections, boxes_B25: NDArray[np.int64], masks_BHW: NDArray[np.bool_]
) -> dict[str, Tensor]:
    """The loss above; ``iou`` is the mean overlap at the right cells."""
    scores, sides, shape = seen
    rows = torch.from_numpy(boxes_B25).to(scores.device)
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
