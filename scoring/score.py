"""Pictures to a scorecard: encode, compare, record the protocol. Memory does not grow with the pictures."""
# Shapes: B pictures of a batch, M reference photos, D feature width.

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.errors import LikenessError
from ..core.hashing import hash_json
from ..subjects.images import pixels_hash
from ..subjects.subject import Photo, Subject
from . import metrics
from .encoders import Encoders, ImageEncoder, to_tensor
from .scorecard import Row, Scorecard
from .thumbnails import Thumbnail, picture_of, thumbnail

log = logging.getLogger(__name__)

MAX_THUMBNAILS = 60  # of a scorecard; the rest is scored and not shown
THUMBNAIL_EDGE_PX = 256


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A generated picture and what it was asked for. A tensor is (3, H, W) in [0, 1]."""

    image: Tensor | Path
    prompt: str
    subject: str
    seed: int | None = None
    photo: int | None = None  # held-out protocol: the one reference whose caption was the prompt


@dataclass(frozen=True, kw_only=True)
class References:
    """The real photos that judge pictures of one subject, and the words that stand for it in prompts."""

    photos: Sequence[Photo | Path | Tensor]
    class_noun: str
    trigger: str = ""  # "sks fish", "<fish>"; empty when prompts use the class noun
    kind: str = "held out"


class Progress(NamedTuple):
    done: int
    total: int


def references_of(subject: Subject, *, trigger: str = "") -> References:
    """A subject's held-out photos; its training photos, with a warning and a mark, when it has none."""
    if not subject.held_out:
        log.warning("%s has no held-out photos: scores against training photos flatter", subject.name)
    return References(
        photos=subject.held_out or subject.photos,
        class_noun=subject.class_noun,
        trigger=trigger,
        kind="held out" if subject.held_out else "training",
    )


def score_images(
    pictures: Sequence[Picture],
    references: Mapping[str, References],
    encoders: Encoders,
    *,
    label: str = "",
    batch: int = 32,
) -> Iterator[Progress | Scorecard]:
    """Score ``pictures`` against their subjects' ``references``: yields progress, and the scorecard last.

    CLIP-I and DINO compare with all references of the subject, or, when every picture names the ``photo``
    whose caption was its prompt, with that one (the held-out protocol). Raises LikenessError for a mixture,
    for a subject without ``references``, and for a picture that cannot be read.
    """
    _check(pictures, references)
    real = {}
    total = len(pictures) + sum(len(references[name].photos) for name in references)
    done = 0
    for name, refs in references.items():
        real[name] = _encode_references(refs, encoders, batch)
        done += len(refs.photos)
        yield Progress(done, total)
    rows: list[Row] = []
    thumbnails: dict[int, Thumbnail] = {}
    for start in range(0, len(pictures), batch):
        chunk = pictures[start : start + batch]
        images = [picture_of(p.image) for p in chunk]
        kept = range(start, min(start + len(chunk), MAX_THUMBNAILS))
        thumbnails |= {i: thumbnail(images[i - start].copy(), edge=THUMBNAIL_EDGE_PX) for i in kept}
        rows += _score(chunk, [to_tensor(image) for image in images], references, real, encoders)
        yield Progress(done + start + len(chunk), total)
    protocol = _protocol(encoders, references, real, paired=bool(pictures) and pictures[0].photo is not None)
    yield Scorecard(label=label, rows=tuple(rows), protocol=protocol, thumbnails=thumbnails)


def scorecard_of(scoring: Iterator[Progress | Scorecard]) -> Scorecard:
    """Run ``score_images`` to its end, for callers that show no progress."""
    *_, last = scoring
    assert isinstance(last, Scorecard)
    return last


@dataclass(frozen=True)
class _Real:
    clip: Tensor  # (M, D)
    dino: Tensor  # (M, D)
    sha256: str  # of the set of photos, whatever their order or names


def _encode_references(refs: References, encoders: Encoders, batch: int) -> _Real:
    clip, dino, hashes = [torch.empty(0, 1)], [torch.empty(0, 1)], []
    for start in range(0, len(refs.photos), batch):
        images = [picture_of(photo) for photo in refs.photos[start : start + batch]]
        hashes += [pixels_hash(image) for image in images]
        tensors = [to_tensor(image) for image in images]
        clip.append(encoders.clip.encode(tensors))
        dino.append(encoders.dino.encode(tensors))
    clip, dino = clip[1:] or clip, dino[1:] or dino
    return _Real(torch.cat(clip), torch.cat(dino), hash_json(sorted(hashes)))


def _score(
    chunk: Sequence[Picture],
    images: Sequence[Tensor],
    references: Mapping[str, References],
    real: Mapping[str, _Real],
    encoders: Encoders,
) -> list[Row]:
    texts = [
        metrics.strip_identifier(p.prompt, references[p.subject].trigger, references[p.subject].class_noun)
        for p in chunk
    ]
    clip_BD, dino_BD = encoders.clip.encode(images), encoders.dino.encode(images)
    clip_t_B = metrics.clip_t(clip_BD, encoders.clip.encode_text(texts))
    rows = []
    for i, (picture, text) in enumerate(zip(chunk, texts, strict=True)):
        refs = real[picture.subject]
        chosen = slice(None) if picture.photo is None else slice(picture.photo, picture.photo + 1)
        scores = {
            "clip_t": float(clip_t_B[i]),
            "clip_i": float(metrics.clip_i(clip_BD[i : i + 1], refs.clip[chosen])),
            "dino": float(metrics.dino(dino_BD[i : i + 1], refs.dino[chosen])),
        }
        path = str(picture.image) if isinstance(picture.image, Path) else ""
        rows.append(
            Row(
                subject=picture.subject,
                prompt=picture.prompt,
                text=text,
                seed=picture.seed,
                image=path,
                scores=scores,
            )
        )
    return rows


def _check(pictures: Sequence[Picture], references: Mapping[str, References]) -> None:
    unknown = sorted({p.subject for p in pictures} - set(references))
    if unknown:
        raise LikenessError(f"There are no reference photos for the subject {unknown[0]!r}")
    named = [p.photo is not None for p in pictures]
    if any(named) and not all(named):
        raise LikenessError(
            "Some pictures name the photo they are compared with, and some do not",
            expected="one protocol per scorecard: all of them, or none",
        )
    for p in pictures:
        if p.photo is not None and not 0 <= p.photo < len(references[p.subject].photos):
            raise LikenessError(
                f"A picture is to be compared with reference {p.photo} of {p.subject!r}",
                expected=f"one of its {len(references[p.subject].photos)} references, counted from 0",
            )


def _protocol(
    encoders: Encoders, references: Mapping[str, References], real: Mapping[str, _Real], *, paired: bool
) -> dict[str, Any]:
    """All that decides the numbers, in words and hashes."""
    others = "the photo whose caption was the prompt" if paired else "every reference photo, mean over pairs"
    return {
        "metrics": {
            "clip_t": _metric(encoders.clip, f"{encoders.clip.label}-T", "the text of its prompt"),
            "clip_i": _metric(encoders.clip, f"{encoders.clip.label}-I", others),
            "dino": _metric(encoders.dino, encoders.dino.label, others),
        },
        "identifier_rule": metrics.IDENTIFIER_RULE,
        "averaging_order": metrics.AVERAGING_ORDER,
        "interval": "95 % percentile bootstrap, 10000 draws, seed 0",
        "references": {
            name: {"kind": refs.kind, "count": len(refs.photos), "sha256": real[name].sha256}
            for name, refs in sorted(references.items())
        },
    }


def _metric(encoder: ImageEncoder, label: str, compared_with: str) -> dict[str, str]:
    return {
        "label": label,
        "encoder": encoder.id,
        "weights_sha256": encoder.weights_hash,
        "preprocessing": encoder.preprocessing,
        "compared_with": compared_with,
    }
