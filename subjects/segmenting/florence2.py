"""Phrase grounding with Florence-2 (Xiao et al. 2024, arXiv:2311.06242), in transformers' native class.

The task ``<CAPTION_TO_PHRASE_GROUNDING>`` with the class noun as caption, decoded with three beams. It always
answers, without a score: ``boxes.choose`` judges. Weights are ``florence-community/Florence-2-*``;
``microsoft/Florence-2-*`` are for code of their own, which is not run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from ...backbones.pretrained import load_pretrained
from .base import Box

TASK = "<CAPTION_TO_PHRASE_GROUNDING>"
NUM_BEAMS = 3  # the model card's
MAX_NEW_TOKENS = 256  # a box is 4 tokens. Differs: the card's 1024 lets a confused model ramble for a minute


class Florence2Locator:
    """``model`` is a Florence2ForConditionalGeneration, ``processor`` its Florence2Processor."""

    def __init__(self, model: Any, processor: Any, *, id: str, max_new_tokens: int = MAX_NEW_TOKENS) -> None:
        self.model, self.processor, self.id, self.max_new_tokens = model, processor, id, max_new_tokens

    @classmethod
    def open(cls, folder: Path, device: str) -> Florence2Locator:
        from transformers import Florence2ForConditionalGeneration, Florence2Processor

        model, processor = load_pretrained(
            Florence2ForConditionalGeneration, Florence2Processor, folder, device
        )
        return cls(model, processor, id=folder.name)

    def locate(self, image: Image.Image, noun: str) -> list[Box]:
        import torch

        inputs = self.processor(text=TASK + noun, images=image, return_tensors="pt")
        inputs = inputs.to(self.model.device)
        with torch.no_grad():
            ids = self.model.generate(
                **inputs,
                max_new_tokens=self.max_new_tokens,
                num_beams=NUM_BEAMS,
                do_sample=False,
            )
        text = self.processor.batch_decode(ids, skip_special_tokens=False)[0]
        return self._boxes(text, image)

    def _boxes(self, text: str, image: Image.Image) -> list[Box]:
        """The boxes that a generated text names: ``cat<loc_52><loc_333><loc_932><loc_774>``."""
        answer = self.processor.post_process_generation(text=text, task=TASK, image_size=image.size)[TASK]
        return [
            Box(x0=x0, y0=y0, x1=x1, y1=y1, label=label)
            for (x0, y0, x1, y1), label in zip(answer["bboxes"], answer["labels"], strict=True)
        ]
