"""Open-vocabulary detection with OWL-ViT (Minderer et al. 2022, arXiv:2205.06230) and OWLv2 (2306.09683).

One query at a time: asked several, transformers' post-processing keeps only each box's best label.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from ...backbones.pretrained import load_pretrained
from .base import Box

THRESHOLD = 0.1  # of the score, as in the model's examples
QUERY = "a photo of a {}"


class OwlLocator:
    """``model`` is an OwlViTForObjectDetection or an Owlv2ForObjectDetection with its processor."""

    def __init__(self, model: Any, processor: Any, *, id: str, threshold: float = THRESHOLD) -> None:
        self.model, self.processor, self.id, self.threshold = model, processor, id, threshold

    @classmethod
    def open(cls, folder: Path, device: str) -> OwlLocator:
        import transformers

        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        name = "Owlv2" if kind == "owlv2" else "OwlViT"
        model, processor = load_pretrained(
            getattr(transformers, f"{name}ForObjectDetection"),
            getattr(transformers, f"{name}Processor"),
            folder,
            device,
        )
        return cls(model, processor, id=folder.name)

    def locate(self, image: Image.Image, noun: str) -> list[Box]:
        import torch

        inputs = self.processor(text=[[QUERY.format(noun)]], images=image, return_tensors="pt")
        with torch.no_grad():
            output = self.model(**inputs.to(self.model.device))
        found = self.processor.post_process_grounded_object_detection(
            output, threshold=self.threshold, target_sizes=[self._frame(image)]
        )[0]
        rows = zip(found["boxes"].tolist(), found["scores"].tolist(), strict=True)
        boxes = [
            Box(x0=x0, y0=y0, x1=x1, y1=y1, label=noun, score=score).within(*image.size)
            for (x0, y0, x1, y1), score in rows
        ]
        return sorted(boxes, key=lambda box: -(box.score or 0.0))

    def _frame(self, image: Image.Image) -> tuple[int, int]:
        """Height and width that the relative boxes are of: OWLv2 pads every picture to a square first.

        transformers' own post-processing scales both models' boxes by the larger side only for OWLv2.
        """
        return (image.height, image.width)
