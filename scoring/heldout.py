"""The held-out protocol of PDST: every picture against the one test photo whose caption it was drawn for.

    CLIP-T  picture and caption (with the class noun in the subject's place)
    CLIP-I  picture and that photo, in CLIP's space
    DINO    picture and that photo, in DINO's space

and the plain mean over all pictures ("Towards More Accurate Personalized Image Generation", appendix 11). The
similarity to the *training* photos is recorded beside it: the gap is what scoring on them hides.
"""
# Shapes: B pictures of a batch, M photos, D feature width, H W pixels.

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import LikenessError
from ..subjects.dataset import SLOT, Dataset, Entry
from ..subjects.subject import Subject
from . import metrics
from .encoders import Encoders, to_tensor
from .evaluation import Task
from .metrics import dino, paired
from .thumbnails import picture_of

COLUMNS = ("clip_t", "clip_i", "dino", "train_dino")


def tasks(entry: Entry, *, seeds_per_caption: int, captions_per_photo: int = 0) -> Iterator[Task]:
    """Every picture of a subject in a fixed order; ``captions_per_photo`` 0 takes all of them."""
    for photo, texts in enumerate(entry.captions):
        for number, text in enumerate(texts[: captions_per_photo or None]):
            for draw in range(seeds_per_caption):
                yield Task(entry.name, photo, number, draw, text)


def require_captions(dataset: Dataset) -> None:
    """Raise LikenessError naming the first test photo that has no caption."""
    for entry in dataset.entries:
        for photo, texts in zip(entry.subject.held_out, entry.captions, strict=True):
            if not texts:
                raise LikenessError(
                    f"The test photo {photo.path} has no caption",
                    expected=f"captions.json in {entry.name}'s folder",
                    fix="Write some, or let Caption Dataset make them",
                )


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A dataset with captioned test photos, and its judges; satisfies ``evaluation.Exam``."""

    dataset: Dataset
    encoders: Encoders
    seeds_per_caption: int
    captions_per_photo: int = 0

    def __post_init__(self) -> None:
        require_captions(self.dataset)

    @property
    def name(self) -> str:
        return self.dataset.name

    @property
    def columns(self) -> Mapping[str, str]:
        return column_names(self.encoders)

    @property
    def subjects(self) -> Sequence[Subject]:
        return [entry.subject for entry in self.dataset.entries]

    def tasks(self, number: int) -> Iterator[Task]:
        return tasks(
            self.dataset.entries[number],
            seeds_per_caption=self.seeds_per_caption,
            captions_per_photo=self.captions_per_photo,
        )

    def judge(self, number: int) -> Judge:
        return Judge(self.dataset.entries[number], self.encoders)

    def record(self) -> Mapping[str, Any]:
        return {
            "dataset": self.dataset.content_hash,
            "encoders": [
                [e.id, e.weights_hash, e.preprocessing] for e in (self.encoders.clip, self.encoders.dino)
            ],
            "compared_with": "the one test photo that the caption came from; plain mean over all pictures",
        }


class Judge:
    """The photos of one subject, encoded once."""

    def __init__(self, entry: Entry, encoders: Encoders) -> None:
        self.entry, self.encoders = entry, encoders
        test = [to_tensor(picture_of(photo)) for photo in entry.subject.held_out]
        self._clip_MD, self._dino_MD = encoders.clip.encode(test), encoders.dino.encode(test)
        trained = [to_tensor(picture_of(photo)) for photo in entry.subject.photos]
        self._trained_MD = encoders.dino.encode(trained)

    def scores(self, chunk: Sequence[Task], images_B3HW: Tensor) -> Mapping[str, Sequence[float]]:
        """``train_dino`` is the mean over the training photos."""
        texts = [task.caption.replace(SLOT, self.entry.subject.class_noun) for task in chunk]
        photos = torch.tensor([task.photo for task in chunk])
        clip_BD, dino_BD = self.encoders.clip.encode(images_B3HW), self.encoders.dino.encode(images_B3HW)
        columns = (
            metrics.clip_t(clip_BD, self.encoders.clip.encode_text(texts)),
            paired(clip_BD, self._clip_MD[photos]),
            paired(dino_BD, self._dino_MD[photos]),
            dino(dino_BD, self._trained_MD),
        )
        return {name: scores_B.tolist() for name, scores_B in zip(COLUMNS, columns, strict=True)}


def column_names(encoders: Encoders) -> dict[str, str]:
    """As the columns are headed: Toybox's own encoders never go by the full-size models' names."""
    clip, identity = encoders.clip.label, encoders.dino.label
    return {
        "clip_t": f"{clip}-T",
        "clip_i": f"{clip}-I",
        "dino": identity,
        "train_dino": f"{identity} (training photos)",
    }
