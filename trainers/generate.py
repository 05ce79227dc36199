"""Pictures with what was learned: a base model, concepts on top, prompts that name them by {}."""
# Shapes: B pictures, H W size.

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..backbones import open_backbone
from ..backbones.base import BaseModel
from ..concepts.applying import apply_concepts
from ..concepts.concept import Concept
from ..core.errors import LikenessError
from .drawing import draw, picture_seed
from .events import Phase

BATCH_SIZE = 16  # pictures of up to 512 pixels drawn at once


def batch_size(image_size: int) -> int:
    """How many pictures are drawn at once: as many pixels, whatever their edge. A row's bits hardly depend on
    it."""
    return max(1, BATCH_SIZE * 512**2 // max(image_size, 512) ** 2)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to draw. Picture n of every prompt starts from the same noise, made of ``seed`` and n."""

    prompts: Sequence[str]
    images_per_prompt: int = 1
    subject_words: str = ""  # what {} stands for; "": the last concept's trigger
    seed: int = 0
    steps: int = 25  # as backbones.Backbone.sample
    guidance: float = 5.0  # as backbones.Backbone.sample


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Pictures in [0, 1] on the CPU, prompt after prompt, and the prompt of each as the model read it."""

    images_BHW3: Tensor
    prompts: tuple[str, ...]


def generate(
    base: BaseModel, concepts: Sequence[tuple[Concept, float]], request: Request
) -> Generator[Phase, None, Drawn]:
    """Draw the request. Yields a Phase per denoising step; the base model is as before, whatever happens.

    Raises LikenessError when no prompt is given, {} has no meaning, or a concept does not fit the model.
    """
    prompts, per_prompt = full_prompts(request, concepts), request.images_per_prompt
    seeds = [picture_seed(request.seed, "generate", n % per_prompt) for n in range(len(prompts))]
    yield Phase("loading", 0, 1)
    backbone = open_backbone(base)
    yield Phase("loading", 1, 1)
    with apply_concepts(backbone, concepts) as model:
        images_B3HW = yield from draw(
            model,
            prompts,
            seeds,
            steps=request.steps,
            guidance=request.guidance,
            batch_size=batch_size(model.image_size),
            phase="drawing",
        )
    return Drawn(images_BHW3=images_B3HW.permute(0, 2, 3, 1).contiguous(), prompts=tuple(prompts))


def full_prompts(request: Request, concepts: Sequence[tuple[Concept, float]]) -> list[str]:
    """Every prompt as often as it is drawn, with the subject's words where {} stands."""
    lines = [line.strip() for line in request.prompts if line.strip()]
    if not lines:
        raise LikenessError("There is no prompt", expected="at least one line")
    words = request.subject_words.strip() or (concepts[-1][0].trigger if concepts else "")
    if not words and any("{}" in line for line in lines):
        raise LikenessError(
            "A prompt has {} in it, and nothing was said of what it stands for",
            fix="Fill in subject_words, or apply a concept that has a trigger word",
        )
    return [line.replace("{}", words) for line in lines for _ in range(request.images_per_prompt)]
