"""SAM 2 (Ravi et al. 2024, arXiv:2408.00714): cuts out what is in a box or at points.

Two ways to run it, whichever is there: the ``sam2`` package with a checkpoint in ``models/sam2`` (the files
that other ComfyUI packs use), or transformers' Sam2Model with a folder of its weights there.
"""
# Shapes: N boxes, H W pixels of the photo.

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...backbones.pretrained import load_pretrained
from ...core.errors import LikenessError
from ...core.packages import require
from .base import Box, Cut, Mask, Masker, Point
from .files import find_file, find_folder, has_folder

FOLDER = "sam2"
SUCH_AS = "facebook/sam2.1-hiera-small"
# The package's configuration of each published checkpoint, by a part of the file's name.
CONFIGS = {
    "sam2.1_hiera_tiny": "configs/sam2.1/sam2.1_hiera_t.yaml",
    "sam2.1_hiera_small": "configs/sam2.1/sam2.1_hiera_s.yaml",
    "sam2.1_hiera_base_plus": "configs/sam2.1/sam2.1_hiera_b+.yaml",
    "sam2.1_hiera_large": "configs/sam2.1/sam2.1_hiera_l.yaml",
    "sam2_hiera_tiny": "configs/sam2/sam2_hiera_t.yaml",
    "sam2_hiera_small": "configs/sam2/sam2_hiera_s.yaml",
    "sam2_hiera_base_plus": "configs/sam2/sam2_hiera_b+.yaml",
    "sam2_hiera_large": "configs/sam2/sam2_hiera_l.yaml",
}


def open_sam2(roots: Sequence[Path], device: str) -> Masker:
    """The package's SAM 2 where it is installed and no transformers folder is there, else transformers'."""
    if has_folder(FOLDER, roots) or importlib.util.find_spec("sam2") is None:
        return Sam2.open(find_folder(FOLDER, roots, such_as=SUCH_AS), device)
    return Sam2Package.open(
        find_file(FOLDER, roots, (".pt", ".safetensors"), such_as="sam2.1_hiera_small.pt"), device
    )


class Sam2:
    """``model`` is transformers' Sam2Model, ``processor`` its Sam2Processor."""

    needs_prompt = True

    def __init__(self, model: Any, processor: Any, *, id: str) -> None:
        self.model, self.processor, self.id = model, processor, id

    @classmethod
    def open(cls, folder: Path, device: str) -> Sam2:
        from transformers import Sam2Model, Sam2Processor

        model, processor = load_pretrained(Sam2Model, Sam2Processor, folder, device)
        return cls(model, processor, id=folder.name)

    def cut(self, image: Image.Image, boxes: Sequence[Box], points: Sequence[Point]) -> Cut:
        import torch

        inputs = self.processor(images=image, return_tensors="pt", **_prompt(boxes, points))
        sizes = inputs.pop("original_sizes")
        with torch.no_grad():
            output = self.model(**inputs.to(self.model.device), multimask_output=False)
        masks = self.processor.post_process_masks(output.pred_masks.cpu(), sizes)[0]  # (N, 1, H, W) bool
        return Cut(
            mask_HW=masks[:, 0].any(dim=0).float().numpy(),
            confidence=float(output.iou_scores.float().clamp(0, 1).mean()),
        )


class Sam2Package:
    """``predictor`` is the sam2 package's SAM2ImagePredictor."""

    needs_prompt = True

    def __init__(self, predictor: Any, *, id: str) -> None:
        self.predictor, self.id = predictor, id

    @classmethod
    def open(cls, checkpoint: Path, device: str) -> Sam2Package:
        build = require("sam2.build_sam", purpose="SAM 2", install="sam2")
        predicting = require("sam2.sam2_image_predictor", purpose="SAM 2", install="sam2")
        config = next((path for name, path in CONFIGS.items() if checkpoint.name.startswith(name)), None)
        if config is None or checkpoint.suffix != ".pt":
            raise LikenessError(
                f"{checkpoint.name} is no checkpoint of SAM 2 that is known by its name",
                expected=", ".join(f"{name}.pt" for name in CONFIGS),
            )
        # build_sam2 reads the checkpoint with weights_only=True: tensors and nothing else
        model = build.build_sam2(config, str(checkpoint), device=device)
        return cls(predicting.SAM2ImagePredictor(model), id=checkpoint.stem)

    def cut(self, image: Image.Image, boxes: Sequence[Box], points: Sequence[Point]) -> Cut:
        import torch

        with torch.inference_mode():
            self.predictor.set_image(np.asarray(image))
            prompts: list[Box | None] = [*boxes] or [None]
            parts = [self._predict(box, points) for box in prompts]
        mask_HW: Mask = np.logical_or.reduce([mask for mask, _ in parts]).astype(np.float32)
        score = float(np.mean([score for _, score in parts]))
        return Cut(mask_HW=mask_HW, confidence=min(max(score, 0.0), 1.0))

    def _predict(self, box: Box | None, points: Sequence[Point]) -> tuple[np.ndarray, float]:
        masks, scores, _ = self.predictor.predict(
            point_coords=np.array([(p.x, p.y) for p in points]) if points else None,
            point_labels=np.array([int(p.inside) for p in points]) if points else None,
            box=np.array(box.corners) if box else None,
            multimask_output=False,
        )
        return masks[0] > 0, float(scores[0])


def _prompt(boxes: Sequence[Box], points: Sequence[Point]) -> dict[str, Any]:
    """Boxes and points as the processor nests them: picture, object, (point,) coordinates."""
    prompt: dict[str, Any] = {}
    objects = max(len(boxes), 1)
    if boxes:
        prompt["input_boxes"] = [[list(box.corners) for box in boxes]]
    if points:
        prompt["input_points"] = [[[[p.x, p.y] for p in points]] * objects]
        prompt["input_labels"] = [[[int(p.inside) for p in points]] * objects]
    return prompt
