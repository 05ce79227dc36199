"""Vision-language models as captioners: Florence-2, the Qwen-VL and LLaVA families, and a chat server.

All open from folders of this machine and never download. Their words go through ``recaption.with_tokens``,
which holds them to the rule whatever they wrote.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from ..backbones.pretrained import answer, load_pretrained
from ..core.errors import LikenessError
from ..core.randomness import isolated_rng
from ..subjects.captions import read_text
from .chat import ChatServer, picture_part
from .layout import Layout
from .recaption import Captioner, RuleCaptioner

MAX_NEW_TOKENS = 160
FLORENCE_TASK = "<MORE_DETAILED_CAPTION>"  # Florence-2's longest kind


def request(layout: Layout) -> str:
    """What a model that takes instructions is asked."""
    nouns = ", ".join(item.noun for item in layout.items)
    place = f" The place is {layout.scene}." if layout.scene else ""
    return (
        f"Describe this photo in one sentence of at most 30 words. Name each of these exactly once: {nouns}. "
        f"Say where each is and what the background is.{place} Write only the sentence."
    )


@dataclass(frozen=True)
class ChatCaptioner:
    """A model on a chat server that takes pictures. An answer of no use falls back to the rules' words."""

    server: ChatServer

    @property
    def name(self) -> str:
        return self.server.name

    def describe(self, image: Image, layout: Layout, *, seed: int) -> str:
        from .validation import Rejected

        parts = [{"type": "text", "text": request(layout)}, picture_part(image)]
        for attempt in range(2):
            try:
                return self.server.complete(
                    [{"role": "user", "content": parts}], temperature=0.2, seed=seed + attempt
                )
            except Rejected:
                continue
        return RuleCaptioner().describe(image, layout, seed=seed)


class FlorenceCaptioner:
    """Florence-2 (Xiao et al. 2023, arXiv:2311.06242) in transformers' own layout:
    "florence-community/..."."""

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        from transformers import AutoProcessor, Florence2ForConditionalGeneration

        kinds = Florence2ForConditionalGeneration, AutoProcessor
        self.model, self.processor = load_pretrained(*kinds, folder, device)
        self.name = folder.name

    def describe(self, image: Image, layout: Layout, *, seed: int) -> str:
        import torch

        inputs = self.processor(text=FLORENCE_TASK, images=image, return_tensors="pt").to(self.model.device)
        with torch.no_grad():
            ids = self.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, num_beams=3, do_sample=False)
        text = self.processor.batch_decode(ids, skip_special_tokens=False)[0]
        done = self.processor.post_process_generation(text, task=FLORENCE_TASK, image_size=image.size)
        return str(done[FLORENCE_TASK])


class InstructedCaptioner:
    """Any image-and-text chat model of transformers: Qwen2-VL and later, LLaVA 1.5 and later."""

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        kinds = AutoModelForImageTextToText, AutoProcessor
        self.model, self.processor = load_pretrained(*kinds, folder, device)
        self.name = folder.name

    def describe(self, image: Image, layout: Layout, *, seed: int) -> str:
        with isolated_rng(seed, "captioner"):
            return answer(
                self.model, self.processor, image, request(layout), max_tokens=MAX_NEW_TOKENS, do_sample=False
            )


def open_captioner(folder: Path, *, device: str = "cpu") -> Captioner:
    """The captioner of a model folder, by the kind that its config names."""
    if not (folder / "config.json").is_file():
        raise LikenessError(
            f"There is no captioning model in {folder}",
            expected="a folder with config.json, model.safetensors and a processor, such as "
            "florence-community/Florence-2-base",
            fix="Copy it there, or choose the rule-based way; Likeness never downloads by itself",
        )
    florence = '"florence2"' in read_text(folder / "config.json").replace(" ", "")
    return (FlorenceCaptioner if florence else InstructedCaptioner)(folder, device=device)
