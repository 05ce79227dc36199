"""Training views: a photo and its mask as tensors, cropped, scaled and flipped by one transform."""
# Shapes: H W pixels of the view.

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .subject import Photo

Crop = Literal["center", "random", "resize", "bucket"]
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the photo


def load_square(
    photo: Photo,
    size: int,
    *,
    crop: Crop = "center",
    flip: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """A square view: image (3, size, size) in [-1, 1], mask (1, size, size) in [0, 1], ones where none is.

    ``crop``: "center" and "random" take the largest square there is, "resize" squeezes the whole photo, as
    Textual Inversion's own code does; "bucket" is a choice of size (``view_size``) and cuts as "center".
    ``flip`` mirrors half of the views. Randomness comes from ``generator`` alone (ValueError without one).
    """
    return load_view(photo, size, size, crop=crop, flip=flip, generator=generator)


def load_view(
    photo: Photo,
    width: int,
    height: int,
    *,
    crop: Crop = "center",
    flip: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """``load_square`` for any size: image (3, height, width), mask (1, height, width)."""
    box = crop_box(photo.width, photo.height, width / height, crop, generator)
    mirrored = flip and bool(torch.rand((), generator=_required(generator)) < 0.5)
    image = photo.open().resize((width, height), Image.Resampling.LANCZOS, box=box)  # antialiased
    image_3HW = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(127.5).sub(1)
    mask_1HW = _mask_view(photo, width, height, box)
    if mirrored:
        image_3HW, mask_1HW = image_3HW.flip(2), mask_1HW.flip(2)
    return image_3HW.contiguous(), mask_1HW.contiguous()


def crop_box(
    width: int, height: int, aspect: float, crop: Crop, generator: torch.Generator | None = None
) -> Box:
    """The largest box of ``aspect`` (width / height) in a photo: in the middle, anywhere, or all of it."""
    if crop == "resize":
        return (0.0, 0.0, float(width), float(height))
    box_width, box_height = min(width, height * aspect), min(height, width / aspect)
    at_x = at_y = 0.5
    if crop == "random":
        at_x, at_y = torch.rand(2, generator=_required(generator)).tolist()
    left, top = (width - box_width) * at_x, (height - box_height) * at_y
    return (left, top, min(left + box_width, width), min(top + box_height, height))


def view_size(photo: Photo, edge: int, *, crop: Crop, step: int) -> tuple[int, int]:
    """Width and height of a photo's view: a square of ``edge``, or with "bucket" the bucket of its shape."""
    return bucket_of(photo, edge, step=step) if crop == "bucket" else (edge, edge)


def buckets(edge: int, *, step: int = 64, max_aspect: float = 2.0) -> list[tuple[int, int]]:
    """Sizes (width, height) in multiples of ``step`` with at most ``edge`` squared pixels, wide to tall.

    Each width has the tallest height that fits, as in NovelAI's aspect ratio bucketing.
    """
    if edge < step:
        raise ValueError(f"a bucket of {edge} pixels holds no step of {step}")
    sizes = set()
    for long_edge in range(edge // step * step, int(edge * math.sqrt(max_aspect)) + 1, step):
        short_edge = min(edge * edge // long_edge // step * step, long_edge)
        if long_edge <= max_aspect * short_edge:
            sizes |= {(long_edge, short_edge), (short_edge, long_edge)}
    return sorted(sizes, reverse=True)


def bucket_of(photo: Photo, edge: int, *, step: int = 64, max_aspect: float = 2.0) -> tuple[int, int]:
    """The bucket whose shape is nearest to the photo's, the larger of two that are equally near."""
    aspect = photo.width / photo.height

    def distance(size: tuple[int, int]) -> tuple[float, int]:
        return (round(abs(math.log(size[0] / size[1] / aspect)), 9), -size[0] * size[1])

    return min(buckets(edge, step=step, max_aspect=max_aspect), key=distance)


def _mask_view(photo: Photo, width: int, height: int, box: Box) -> Tensor:
    mask_HW = photo.mask()
    if mask_HW is None:
        return torch.ones(1, height, width)
    mask = Image.fromarray(mask_HW, mode="F").resize((width, height), Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(mask)).clamp(0, 1)[None]  # soft edges, without Lanczos' overshoot


def _required(generator: torch.Generator | None) -> torch.Generator:
    if generator is None:
        raise ValueError("random crops and flips need a generator: randomness is never taken from the host")
    return generator
