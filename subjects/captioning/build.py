"""Captions for every test photo of a dataset, kept as they come: stopped, it goes on behind the last one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from ...core.errors import LikenessError
from ..dataset import Dataset, Entry, save_captions
from ..subject import Photo
from .base import Captioner, read_answer

log = logging.getLogger(__name__)

ATTEMPTS = 4  # answers per photo before what there is must do


class Progress(NamedTuple):
    done: int
    total: int


def caption_dataset(
    dataset: Dataset, captioner: Captioner, *, per_photo: int = 10, overwrite: bool = False
) -> Iterator[Progress | Dataset]:
    """Captions (``per_photo``; PDST has ten) for test photos without; yields progress, then the dataset.

    ``captions.json`` and ``captions.csv`` in the subject's folder are written after each photo. Photos that
    have captions keep them, unless ``overwrite``. Raises LikenessError when a captioner fails, or gives no
    usable caption of a photo; what was written before stays.
    """
    total = sum(len(entry.captions) for entry in dataset.entries)
    done, entries = 0, []
    for entry in dataset.entries:
        for place, photo in enumerate(entry.subject.held_out):
            yield Progress(done, total)
            if overwrite or not entry.captions[place]:
                entry = _with(entry, place, _captions(photo, entry, captioner, per_photo))
                save_captions(entry)
            done += 1
        entries.append(entry)
    yield Progress(total, total)
    yield replace(dataset, entries=tuple(entries))


def _captions(photo: Photo, entry: Entry, captioner: Captioner, count: int) -> tuple[str, ...]:
    noun = entry.subject.class_noun
    found: list[str] = []
    for attempt in range(ATTEMPTS):
        answer = captioner.write(photo.open(), noun, count, attempt)
        new = [text for text in read_answer(answer, [noun]) if text not in found]
        found += new
        if len(found) >= count:
            return tuple(found[:count])
        if attempt and not new:
            break
    if not found:
        raise LikenessError(
            f"{captioner.id} gave no usable caption of {photo.path} (it answered {answer[:80]!r})",
            expected=f"sentences that name a [SUBJECT] and not the {noun}'s look",
            fix="Try another model, or write captions.json by hand. What was captioned so far is kept",
        )
    log.warning("%s has %d captions of %d that were asked for", photo.path, len(found), count)
    return tuple(found)


def _with(entry: Entry, place: int, texts: tuple[str, ...]) -> Entry:
    captions = list(entry.captions)
    captions[place] = texts
    return replace(entry, captions=tuple(captions))
