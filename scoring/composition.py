"""CP-CLIP and TI-CLIP: are all subjects there and right, and does the picture follow its text?

Gen4Gen (Yeh et al. 2024) names both and says what they judge; neither a formula nor code was published. These
definitions are our reading of the paper:

    CP-CLIP(image) = 1/N  sum over subjects n of  max(0, cos(CLIP(crop of n's box), CLIP(references of n)))
    TI-CLIP(image) = cos(CLIP(image), CLIP(prompt with nouns in the place of the words that were learned))

A detector is asked for each subject's noun; boxes go to subjects one to one, so that the sum is largest; a
subject without a box counts zero. Presence, similarity where present, and boxes left over are given beside
it.
"""
# Shapes: B boxes, N subjects, M reference photos, D feature width. Boxes are x0, y0, x1, y1 in pixels.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from ..backbones.pretrained import load_pretrained
from ..core.errors import LikenessError
from ..core.tables import finite
from ..subjects.subject import Photo, Subject
from .encoders import Encoders, ImageEncoder, find_model, to_pil, to_tensor
from .metrics import bootstrap_interval

Box = tuple[float, float, float, float]
DEFINITION = "our reading of Gen4Gen; the paper gives no formula"
OWL_ID = "google/owlvit-base-patch32"
LEAST_SCORE = 0.1  # OWL-ViT's own demo threshold
LEAST_EDGE = 1 / 32  # of the picture: 16 px of 512; smaller boxes hold nothing that can be judged
MAX_BOXES = 12  # best boxes that take part in the assignment, of one noun


class Detector(Protocol):
    """``detect`` finds one noun in one picture (3, H, W) in [0, 1]: boxes with scores, the best first."""

    id: str

    def detect(self, image_3HW: Tensor, noun: str) -> list[tuple[Box, float]]: ...


@dataclass(frozen=True, kw_only=True)
class Sought:
    """A subject that a picture should show: its noun for the detector, its references for the comparison."""

    name: str
    noun: str
    features_MD: Tensor = field(repr=False)  # unit rows
    word: str = ""  # what prompts call it: "<rex> dog"


@dataclass(frozen=True, kw_only=True)
class CompositionScore:
    """One picture. ``similarity`` is by subject, 0 for one that was not found."""

    similarity: Mapping[str, float]
    boxes: Mapping[str, Box | None]
    extra: int  # boxes of the subjects' nouns that nobody took
    ti_clip: float = math.nan

    @property
    def cp_clip(self) -> float:
        return sum(self.similarity.values()) / len(self.similarity)

    @property
    def presence(self) -> float:
        """The share of subjects that have a box."""
        return sum(box is not None for box in self.boxes.values()) / len(self.boxes)

    @property
    def given_present(self) -> float:
        """Mean similarity of the subjects that were found; NaN when none was."""
        found = [self.similarity[name] for name, box in self.boxes.items() if box is not None]
        return sum(found) / len(found) if found else math.nan


def score_composition(
    image_3HW: Tensor,
    sought: Sequence[Sought],
    detector: Detector,
    encoder: ImageEncoder,
    *,
    ti_clip: float = math.nan,
) -> CompositionScore:
    """CP-CLIP and its parts for one picture. Name a subject twice in ``sought`` to ask for two of it.

    Raises LikenessError when no subject is sought.
    """
    if not sought:
        raise LikenessError("No subject is sought in the picture", expected="at least one")
    names = [f"{one.name}#{n}" if n else one.name for n, one in _numbered(sought)]
    boxes, nouns_B = _detections(image_3HW, sought, detector)
    value_NB = _similarities(image_3HW, sought, boxes, nouns_B, encoder)
    chosen = assign(value_NB)
    similarity, found = {}, {}
    for n, name in enumerate(names):
        box = chosen[n]
        similarity[name] = 0.0 if box is None else max(0.0, value_NB[n][box])
        found[name] = None if box is None else boxes[box]
    extra = len(boxes) - sum(box is not None for box in chosen)
    return CompositionScore(similarity=similarity, boxes=found, extra=extra, ti_clip=ti_clip)


def _numbered(sought: Sequence[Sought]) -> list[tuple[int, Sought]]:
    seen: dict[str, int] = {}
    rows = []
    for one in sought:
        rows.append((seen.get(one.name, 0), one))
        seen[one.name] = seen.get(one.name, 0) + 1
    return rows


def _detections(
    image_3HW: Tensor, sought: Sequence[Sought], detector: Detector
) -> tuple[list[Box], list[str]]:
    """Every noun asked for once, on its own: detectors that label a box with its best noun only would lose a
    cat that looks more like a dog."""
    height, width = image_3HW.shape[1:]
    boxes: list[Box] = []
    nouns: list[str] = []
    for noun in dict.fromkeys(one.noun for one in sought):
        for box, score in detector.detect(image_3HW, noun)[:MAX_BOXES]:
            clipped = (
                max(box[0], 0.0),
                max(box[1], 0.0),
                min(box[2], float(width)),
                min(box[3], float(height)),
            )
            large = min(clipped[2] - clipped[0], clipped[3] - clipped[1]) >= LEAST_EDGE * min(width, height)
            if score >= getattr(detector, "least", 0.0) and large:
                boxes.append(clipped)
                nouns.append(noun)
    return boxes, nouns


def _similarities(
    image_3HW: Tensor,
    sought: Sequence[Sought],
    boxes: Sequence[Box],
    nouns_B: Sequence[str],
    encoder: ImageEncoder,
) -> list[list[float]]:
    """(N, B): mean cosine of each box's crop to a subject's references; -inf where the noun is another."""
    if not boxes:
        return [[] for _ in sought]
    crops_BD = encoder.encode([crop(image_3HW, box) for box in boxes])
    rows = []
    for one in sought:
        mean_B = (crops_BD @ one.features_MD.T).mean(1).tolist()
        rows.append([v if noun == one.noun else -math.inf for v, noun in zip(mean_B, nouns_B, strict=True)])
    return rows


def crop(image_3HW: Tensor, box: Box) -> Tensor:
    """A square around a box as large as its longer side, moved into the picture where it can be."""
    height, width = image_3HW.shape[1:]
    edge = min(max(box[2] - box[0], box[3] - box[1]), float(height), float(width))
    left = min(max((box[0] + box[2] - edge) / 2, 0.0), width - edge)
    top = min(max((box[1] + box[3] - edge) / 2, 0.0), height - edge)
    x0, y0 = math.floor(left), math.floor(top)
    return image_3HW[:, y0 : max(math.ceil(top + edge), y0 + 1), x0 : max(math.ceil(left + edge), x0 + 1)]


def assign(value_NB: Sequence[Sequence[float]]) -> list[int | None]:
    """Boxes to subjects one to one: as many subjects as can be, and then the largest sum.

    Exact, by dynamic programming over sets of subjects; -inf forbids a pair.
    """
    num, boxes = len(value_NB), len(value_NB[0]) if value_NB else 0

    @cache
    def best(box: int, free: int) -> tuple[int, float, tuple[int, ...]]:
        """(how many, their sum, box by subject with -1 for none) with boxes from ``box`` on."""
        if box == boxes or free == 0:
            return 0, 0.0, (-1,) * num
        top = best(box + 1, free)
        for n in range(num):
            value = value_NB[n][box]
            if free >> n & 1 and value > -math.inf:
                count, total, chosen = best(box + 1, free & ~(1 << n))
                taken = (*chosen[:n], box, *chosen[n + 1 :])
                top = max(top, (count + 1, total + value, taken), key=lambda found: found[:2])
        return top

    return [None if box < 0 else box for box in best(0, (1 << num) - 1)[2]]


# --- subjects and texts -------------------------------------------------------------------------------


def sought_of(subject: Subject, encoder: ImageEncoder, *, word: str = "", held_out: bool = True) -> Sought:
    """A subject as it is compared with: square crops around its masks, or whole photos where it has none.

    Held-out photos where there are some, unless ``held_out`` is off.
    """
    photos = subject.held_out if held_out and subject.held_out else subject.photos
    features_MD = encoder.encode([_reference(photo) for photo in photos])
    return Sought(name=subject.name, noun=subject.class_noun, features_MD=features_MD, word=word)


def _reference(photo: Photo) -> Tensor:
    return crop_to_mask(to_tensor(photo.open()), photo.mask())


def crop_to_mask(image_3HW: Tensor, mask_HW: NDArray[Any] | None) -> Tensor:
    """The square crop around a mask (0 to 1); the whole picture where there is none, or it is empty."""
    if mask_HW is None or not (mask_HW > 0.5).any():
        return image_3HW
    rows, columns = (torch.from_numpy(mask_HW > 0.5).any(d).nonzero().flatten() for d in (1, 0))
    box = (float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1)
    return crop(image_3HW, box)


def plain_prompt(prompt: str, sought: Sequence[Sought]) -> str:
    """The prompt without the words that were learned: "a <rex> dog" is "a dog"."""
    for one in sorted(sought, key=lambda one: -len(one.word)):
        if one.word:
            prompt = prompt.replace(one.word, one.noun)
            token = one.word.removesuffix(one.noun).strip()
            prompt = prompt.replace(token, one.noun) if token else prompt
    return " ".join(prompt.split())


def ti_clip(images: Sequence[Tensor], prompts: Sequence[str], encoders: Encoders) -> list[float]:
    """The whole picture against its plain prompt, each."""
    image_BD, text_BD = encoders.clip.encode(list(images)), encoders.clip.encode_text(list(prompts))
    return [float(v) for v in (image_BD * text_BD).sum(1)]


@dataclass(frozen=True, kw_only=True)
class CompositionCard:
    """Many pictures' scores, their means with 95 % intervals over pictures, and how they were made."""

    rows: tuple[CompositionScore, ...]
    prompts: tuple[str, ...]
    protocol: Mapping[str, Any]

    def means(self) -> dict[str, tuple[float, float, float]]:
        """(mean, low, high) of every measure; NaN where there is nothing to average."""
        return {name: _mean([getattr(row, name) for row in self.rows]) for name in MEASURES}

    def summary(self) -> str:
        shown = [
            f"{MEASURES[name]} {mean:.3f}" for name, (mean, _, _) in self.means().items() if mean == mean
        ]
        return ", ".join(shown) + f" ({len(self.rows)} pictures)"

    def record(self) -> dict[str, Any]:
        """JSON values; NaN is None."""
        rows = [
            {"prompt": prompt, **{name: finite(getattr(row, name)) for name in MEASURES},
             "similarity": dict(row.similarity)}
            for row, prompt in zip(self.rows, self.prompts, strict=True)
        ]  # fmt: skip
        return {"means": finite(self.means()), "protocol": dict(self.protocol), "rows": rows}


MEASURES = {
    "cp_clip": "CP-CLIP",
    "ti_clip": "TI-CLIP",
    "presence": "presence",
    "given_present": "similarity given present",
    "extra": "extra boxes",
}


def score_compositions(
    images: Sequence[Tensor],
    prompts: Sequence[str],
    sought: Sequence[Sought],
    detector: Detector,
    encoders: Encoders,
    *,
    judge: ImageEncoder | None = None,
) -> CompositionCard:
    """Every picture's CP-CLIP and TI-CLIP. ``judge`` compares the crops, None is CLIP; it is what the
    references' features in ``sought`` are of."""
    encoder = judge or encoders.clip
    texts = [plain_prompt(prompt, sought) for prompt in prompts]
    text_scores = [ti_clip([image], [text], encoders)[0] for image, text in zip(images, texts, strict=True)]
    rows = tuple(
        score_composition(image, sought, detector, encoder, ti_clip=value)
        for image, value in zip(images, text_scores, strict=True)
    )
    protocol = {
        "definition": DEFINITION,
        "detector": detector.id,
        "encoder": encoder.id,
        "encoder weights": encoder.weights_hash,
        "text encoder": encoders.clip.id,
        "subjects": {one.name: {"noun": one.noun, "references": len(one.features_MD)} for one in sought},
    }
    return CompositionCard(rows=rows, prompts=tuple(texts), protocol=protocol)


def _mean(values: Sequence[float]) -> tuple[float, float, float]:
    known = [float(v) for v in values if math.isfinite(v)]
    if not known:
        return math.nan, math.nan, math.nan
    return (sum(known) / len(known), *bootstrap_interval(known))


# --- detectors ----------------------------------------------------------------------------------------


class ToyboxDetector:
    """The built-in world's own, for its pictures alone."""

    id = "toybox-detector"
    least = 0.15  # in held-out pictures 1 of 373 things has less, and 30 of 3,827 absent nouns have more

    def __init__(self) -> None:
        from ..backbones.toybox import models

        self.model = models.load_detector()

    def detect(self, image_3HW: Tensor, noun: str) -> list[tuple[Box, float]]:
        from ..backbones.toybox import models, world

        if noun not in world.NOUNS:
            raise LikenessError(f"Toybox's detector knows no {noun!r}", expected=", ".join(world.NOUNS))
        height, width = image_3HW.shape[1:]
        small_3HW = models.fit(image_3HW[None])[0]
        scale_x, scale_y = width / world.SIZE_PX, height / world.SIZE_PX
        found = self.model.detect(small_3HW, noun, least=self.least)
        return [
            ((b[0] * scale_x, b[1] * scale_y, b[2] * scale_x, b[3] * scale_y), score) for b, score in found
        ]


class OwlDetector:
    """OWL-ViT or OWLv2 (Minderer et al. 2022, arXiv:2205.06230; 2023, arXiv:2306.09683), one noun at a
    time."""

    least = LEAST_SCORE

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        kinds = AutoModelForZeroShotObjectDetection, AutoProcessor
        self.model, self.processor = load_pretrained(*kinds, folder, device)
        self.id = folder.name

    @torch.no_grad()
    def detect(self, image_3HW: Tensor, noun: str) -> list[tuple[Box, float]]:
        image = to_pil(image_3HW)
        inputs = self.processor(text=[[f"a photo of a {noun}"]], images=image, return_tensors="pt")
        out = self.model(**inputs.to(self.model.device))
        # OWLv2 pads to a square, and its boxes are shares of that square.
        square = max(image.size)
        width, height = (square, square) if "2" in type(self.model).__name__ else image.size
        scores_B = out.logits[0, :, 0].sigmoid().cpu()
        found: list[tuple[Box, float]] = []
        for n in scores_B.argsort(descending=True).tolist():
            if scores_B[n] < self.least or len(found) == MAX_BOXES:
                break
            x, y, w, h = out.pred_boxes[0, n].cpu().tolist()
            box = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
            if all(_overlap(box, other) < 0.5 for other, _ in found):
                found.append((box, float(scores_B[n])))
        return found


def open_detector(
    family: str, *, source: str = OWL_ID, roots: Sequence[Path] = (), device: str = "cpu"
) -> Detector:
    """Toybox's for its own pictures, else OWL-ViT from a folder of this machine. LikenessError without it."""
    with torch.inference_mode(False):
        if family == "toybox":
            return ToyboxDetector()
        return OwlDetector(find_model(source, roots), device=device)


def _overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    whole = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - wide * high
    return wide * high / max(whole, 1e-9)
