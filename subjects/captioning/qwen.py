"""A vision-language model of the Qwen-VL family in transformers' own classes (Qwen2-VL is the paper's)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from ...backbones.pretrained import answer, load_pretrained
from ...core.randomness import isolated_rng
from .base import ask

EDGE_PX = 768  # of the picture that it sees: about 750 tokens
TOKENS_PER_CAPTION = 60


class QwenCaptioner:
    """``model`` is a Qwen2-VL, Qwen2.5-VL or Qwen3-VL ForConditionalGeneration with its processor."""

    def __init__(self, model: Any, processor: Any, *, id: str) -> None:
        self.model, self.processor, self.id = model, processor, id

    @classmethod
    def open(cls, folder: Path, device: str) -> QwenCaptioner:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        model, processor = load_pretrained(AutoModelForImageTextToText, AutoProcessor, folder, device)
        return cls(model, processor, id=folder.name)

    def write(self, image: Image.Image, noun: str, count: int, attempt: int) -> str:
        small = image.copy()
        small.thumbnail((EDGE_PX, EDGE_PX), Image.Resampling.LANCZOS)
        with isolated_rng(attempt, "captions"):
            return answer(
                self.model,
                self.processor,
                small,
                ask(noun, count),
                max_tokens=TOKENS_PER_CAPTION * count,
                do_sample=attempt > 0,  # the first answer is the surest, others differ
                temperature=0.9 if attempt > 0 else None,
            )
