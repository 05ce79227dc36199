"""A subject without its photo: original pixels, a soft alpha, no dark or bright fringe.

Gen4Gen (Yeh et al. 2024) multiplies a photo with each round's mask and keeps the last mask alone, which
leaves dark fringes where an earlier mask was smaller. Here the mask is what segmentation left with the photo
(the product of its rounds), and the colour of half-covered pixels is taken from the covered ones beside them.
"""
# Shapes: H W pixels of the cut-out.

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ..core.errors import LikenessError
from ..core.hashing import hash_json
from ..core.paths import write_atomic
from ..subjects.subject import Photo, Subject
from .pictures import png_bytes

log = logging.getLogger(__name__)

SOLID = 0.95  # a pixel's colour is the subject's own from this alpha on
EMPTY, FULL = 0.002, 0.97  # shares of a photo beyond which a mask says nothing
MAX_EDGE = 1024  # px: more than any box of a 1024 canvas shows
FRINGE_PX = (2.0, 2.0, 4.0)  # blurs that carry the subject's colour outwards, one after the other
VERSION = 2  # of this file's arithmetic: raised when the same photo gives another cut-out


@dataclass(frozen=True, kw_only=True)
class Cutout:
    """``image`` is RGBA, tight around the subject. ``score`` ranks cut-outs of one subject."""

    image: Image.Image = field(repr=False, compare=False)
    subject: str
    noun: str
    photo_sha256: str
    sha256: str
    sharpness: float
    completeness: float
    agreement: float = 1.0  # with the subject's other cut-outs, 0 to 1: a slipped mask shows something else

    @cached_property
    def levels(self) -> tuple[Image.Image, ...]:
        """Premultiplied by alpha, at full size, a half and a quarter: what is scaled from."""
        full = self.image.convert("RGBa")
        return (full, *(full.reduce(factor) for factor in (2, 4) if min(full.size) >= 2 * factor))

    @property
    def aspect(self) -> float:
        return self.image.width / self.image.height

    @property
    def score(self) -> float:
        """Sharp, complete and alike; a subject cut by its photo's edge cannot be made whole by sharpness."""
        return self.sharpness * self.completeness**2 * self.agreement**2


def cut_out(photo: Photo, *, subject: str, noun: str, max_edge: int = MAX_EDGE) -> Cutout:
    """Cut a photo along its mask. Raises LikenessError when it has none, or one that says nothing."""
    mask_HW = photo.mask()
    if mask_HW is None:
        raise LikenessError(
            f"The photo {photo.path} has no mask", fix="Put Segment Subject before, or add mask files"
        )
    share = float((mask_HW > 0.5).mean())
    if share < EMPTY or share > FULL:
        what = "is empty" if share < EMPTY else "fills the whole photo"
        raise LikenessError(
            f"The mask of {photo.path} {what}",
            expected="the subject white and the rest black",
            fix="Segment it again or leave the photo out",
        )
    left, top, right, bottom = tight_box(mask_HW)
    rgb = photo.open().crop((left, top, right, bottom))
    alpha_HW = mask_HW[top:bottom, left:right]
    whole = completeness(mask_HW)
    rgb, alpha = _scaled(rgb, Image.fromarray(np.round(alpha_HW * 255).astype(np.uint8)), max_edge)
    image = decontaminated(rgb, alpha)
    return Cutout(
        image=image,
        subject=subject,
        noun=noun,
        photo_sha256=photo.sha256,
        sha256=hash_json([VERSION, photo.sha256, photo.mask_sha256, max_edge]),
        sharpness=sharpness(image),
        completeness=whole,
    )


def best_cutouts(subject: Subject, *, most: int = 0, max_edge: int = MAX_EDGE) -> list[Cutout]:
    """The subject's cut-outs, the best first; ``most`` of them, 0 for all.

    Photos without a usable mask are left out with a warning; LikenessError when none is left.
    """
    found, reasons = [], []
    for photo in subject.photos:
        try:
            found.append(cut_out(photo, subject=subject.name, noun=subject.class_noun, max_edge=max_edge))
        except LikenessError as error:
            reasons.append(error)
            log.warning("%s", error)
    if not found:
        raise LikenessError(
            f"No photo of {subject.name} can be cut out: {reasons[0].problem if reasons else 'no photos'}",
            expected="photos with masks",
            fix="Put Segment Subject before, or add mask files",
        )
    found = _compared(found)
    found.sort(key=lambda cutout: (-cutout.score, cutout.sha256))
    return found[: most or None]


def _compared(cutouts: list[Cutout]) -> list[Cutout]:
    """With ``agreement``: how much of its colours a cut-out shares with each of the others, the median. Two
    tell nothing of who is right."""
    if len(cutouts) < 3:
        return cutouts
    colours = [_colours(cutout.image) for cutout in cutouts]
    shared = [
        [float(np.minimum(a, b).sum()) for m, b in enumerate(colours) if m != n]
        for n, a in enumerate(colours)
    ]
    return [replace(c, agreement=float(np.median(row))) for c, row in zip(cutouts, shared, strict=True)]


def _colours(image: Image.Image) -> NDArray[np.float64]:
    """Shares of 64 colours among the solid pixels, at 64 px."""
    small = np.asarray(image.resize((64, 64), Image.Resampling.BOX))
    solid_N3 = small[small[..., 3] > 200][:, :3] // 64
    counts: NDArray[np.float64] = np.bincount(solid_N3 @ np.array([16, 4, 1]), minlength=64).astype(
        np.float64
    )
    shares: NDArray[np.float64] = counts / max(counts.sum(), 1.0)
    return shares


def tight_box(mask_HW: NDArray[np.float32], least: float = 70 / 255) -> tuple[int, int, int, int]:
    """Left, top, right, bottom (exclusive) of what is above ``least`` (the reference's 70 of 255), with a
    pixel of soft edge around it."""
    rows, columns = np.nonzero((mask_HW > least).any(1))[0], np.nonzero((mask_HW > least).any(0))[0]
    height, width = mask_HW.shape
    left, top = max(int(columns[0]) - 1, 0), max(int(rows[0]) - 1, 0)
    return left, top, min(int(columns[-1]) + 2, width), min(int(rows[-1]) + 2, height)


def completeness(mask_HW: NDArray[np.float32]) -> float:
    """1 for a subject that keeps clear of its photo's edges, less by the share of edge pixels that it covers,
    and by what lies apart from the largest piece."""
    solid = mask_HW > 0.5
    edge = np.concatenate([solid[0], solid[-1], solid[:, 0], solid[:, -1]])
    reach = max(int(solid.any(0).sum()), int(solid.any(1).sum()), 1)
    return float(max(0.0, 1.0 - edge.sum() / reach))


def sharpness(image: Image.Image) -> float:
    """Mean absolute Laplacian of the brightness inside, at 256 px: what a viewer takes for sharp."""
    small = image.copy()
    small.thumbnail((256, 256))
    grey_HW = np.asarray(small.convert("RGB").convert("L"), dtype=np.float32)
    inside_HW = np.asarray(small.getchannel("A")) > 250
    if min(grey_HW.shape) < 3:
        return 0.0
    laplacian = np.abs(
        4 * grey_HW[1:-1, 1:-1]
        - grey_HW[:-2, 1:-1]
        - grey_HW[2:, 1:-1]
        - grey_HW[1:-1, :-2]
        - grey_HW[1:-1, 2:]
    )
    inside = inside_HW[1:-1, 1:-1]
    return float(laplacian[inside].mean() / 255) if inside.any() else 0.0


def decontaminated(rgb: Image.Image, alpha: Image.Image) -> Image.Image:
    """RGBA whose soft pixels have the subject's own colour, not a mixture with the old background.

    Colours of solid pixels spread outwards by a normalised blur; solid pixels keep every bit.
    """
    rgb_HW3 = np.asarray(rgb.convert("RGB"))
    alpha_HW = np.asarray(alpha)
    solid_HW = alpha_HW >= round(SOLID * 255)
    if not solid_HW.any():
        return _with_alpha(rgb, alpha)
    clean_HW3, known_HW = rgb_HW3.copy(), solid_HW
    for radius in FRINGE_PX:
        spread = ImageFilter.GaussianBlur(radius)
        weight = Image.fromarray((known_HW * 255).astype(np.uint8)).filter(spread)
        masked = Image.fromarray(np.where(known_HW[..., None], clean_HW3, 0).astype(np.uint8))
        total_HW = np.asarray(weight, dtype=np.float32)
        colour_HW3 = np.asarray(masked.filter(spread), dtype=np.float32)
        new_HW = ~known_HW & (alpha_HW > 0) & (total_HW >= 40)  # below, eight bits carry no colour
        clean_HW3[new_HW] = (colour_HW3[new_HW] * 255 / total_HW[new_HW][:, None]).round().clip(0, 255)
        known_HW = known_HW | new_HW
    return _with_alpha(Image.fromarray(clean_HW3), alpha)


def _with_alpha(rgb: Image.Image, alpha: Image.Image) -> Image.Image:
    image = rgb.convert("RGBA")
    image.putalpha(alpha)
    return image


def _scaled(rgb: Image.Image, alpha: Image.Image, max_edge: int) -> tuple[Image.Image, Image.Image]:
    longest = max(rgb.size)
    if longest <= max_edge:
        return rgb, alpha
    size = (max(1, round(rgb.width * max_edge / longest)), max(1, round(rgb.height * max_edge / longest)))
    return rgb.resize(size, Image.Resampling.LANCZOS), alpha.resize(size, Image.Resampling.BILINEAR)


# --- kept on disk, so that a build goes on without cutting anew ----------------------------------------


def write_cutout(cutout: Cutout, folder: Path) -> Path:
    """``folder/<hash>.png``, unless it is there."""
    path = folder / f"{cutout.subject}-{cutout.sha256[:16]}.png"
    if not path.exists():
        write_atomic(path, png_bytes(cutout.image))
    return path


def check_aspects(cutouts: Sequence[Cutout]) -> None:
    """LikenessError for a cut-out so thin that no scene can hold it."""
    for cutout in cutouts:
        if not 1 / 12 <= cutout.aspect <= 12:
            raise LikenessError(
                f"The cut-out of {cutout.subject} is {cutout.image.width} x {cutout.image.height} pixels",
                expected="a shape no longer than twelve times its width",
                fix="Look at its mask",
            )
