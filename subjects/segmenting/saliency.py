"""Saliency: the thing that a picture is of, without being told where or what. IS-Net's published weights.

Differs: the reference min-max stretches each prediction, which turns an empty picture into full contrast;
here an empty picture stays empty.
"""
# Shapes: H W pixels of the photo, E the network's input edge.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...core.errors import LikenessError
from .base import Box, Cut, Point
from .files import find_file, read_weights

FOLDER = "isnet"
EDGE_PX = 1024  # the reference's input size
SUCH_AS = "isnet-general-use.pth"


class Saliency:
    """``model`` maps (1, 3, E, E) in [-0.5, 0.5] to probabilities (1, 1, E, E). Boxes limit what is kept."""

    needs_prompt = False

    def __init__(self, model: Any, *, id: str, edge_px: int = EDGE_PX) -> None:
        self.model, self.id, self.edge_px = model, id, edge_px

    @classmethod
    def open(cls, roots: Sequence[Path], device: str) -> Saliency:
        import torch

        from .isnet import ISNet

        path = find_file(FOLDER, roots, (".safetensors", ".pth"), such_as=SUCH_AS)
        with torch.device("meta"):  # its weights are about to be the file's
            model = ISNet()
        try:
            model.load_state_dict(read_weights(path), assign=True)
        except RuntimeError as error:
            raise LikenessError(
                f"{path} does not hold IS-Net's weights: {str(error)[:200]}", expected=SUCH_AS
            ) from error
        return cls(model.eval().requires_grad_(False).to(device), id=path.stem)

    def cut(self, image: Image.Image, boxes: Sequence[Box], points: Sequence[Point]) -> Cut:
        chance_HW = self._predict(image)
        if boxes:
            chance_HW = chance_HW * _in_boxes(image, boxes)
        solid_HW = chance_HW >= 0.5
        sure = float(np.abs(chance_HW - 0.5)[_around(solid_HW)].mean() * 2) if solid_HW.any() else 0.0
        return Cut(mask_HW=chance_HW, confidence=sure)

    def _predict(self, image: Image.Image) -> np.ndarray:
        import torch
        import torch.nn.functional as F

        edge = (self.edge_px, self.edge_px)  # distorts the aspect, as the reference does
        # Differs: the reference scales with nearest neighbours, which shreds thin parts
        pixels_EE3 = np.array(image.resize(edge, Image.Resampling.BILINEAR))
        device = next(self.model.parameters()).device
        x_13EE = torch.from_numpy(pixels_EE3).permute(2, 0, 1)[None].float().to(device) / 255 - 0.5
        with torch.no_grad():
            chance = F.interpolate(self.model(x_13EE), size=(image.height, image.width), mode="bilinear")
        mask_HW: np.ndarray = chance[0, 0].float().cpu().numpy()
        return mask_HW


def _in_boxes(image: Image.Image, boxes: Sequence[Box]) -> np.ndarray:
    inside_HW = np.zeros((image.height, image.width), np.float32)
    for box in boxes:
        inside_HW[int(box.y0) : int(np.ceil(box.y1)), int(box.x0) : int(np.ceil(box.x1))] = 1
    return inside_HW


def _around(solid_HW: np.ndarray) -> np.ndarray:
    """The tight frame of the foreground: being sure of an empty sky says nothing of the subject."""
    ys, xs = np.nonzero(solid_HW)
    frame_HW = np.zeros_like(solid_HW)
    frame_HW[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] = True
    return frame_HW
