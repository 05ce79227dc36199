"""Which photos train and which only judge: explicit, seeded by content, recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..core.errors import LikenessError
from ..core.hashing import hash_json
from .subject import Photo, Subject, check_leak


def split_held_out(
    subject: Subject,
    *,
    count: int | None = None,
    fraction: float | None = None,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> Subject:
    """The subject with its photos split anew; photos that were held out before go back first.

    Give one of ``count``, ``fraction`` (of all photos, rounded, at least one) and ``names`` (file names,
    with or without suffix). The seeded choice depends on the pictures and not on their names or order.
    Raises LikenessError when none would be left to train on, or a name is unknown.
    """
    if sum(choice is not None for choice in (count, fraction, names)) != 1:
        raise ValueError("give exactly one of count, fraction and names")
    photos = (*subject.photos, *subject.held_out)
    if names is not None:
        chosen, how = _by_names(photos, names), "by name"
    else:
        wanted = count if count is not None else _count_of(len(photos), fraction)
        chosen, how = _by_seed(photos, wanted, seed), f"by seed {seed}"
    trained = tuple(photo for photo in photos if photo not in chosen)
    held_out = tuple(photo for photo in photos if photo in chosen)
    if not trained:
        raise _none_left(len(held_out), len(photos))
    check_leak(trained, held_out)
    how = f"{how}: {len(held_out)} of {len(photos)}" if held_out else ""
    return replace(subject, photos=trained, held_out=held_out, split=how)


def _count_of(num_photos: int, fraction: float | None) -> int:
    if fraction is None or not 0 < fraction < 1:
        raise LikenessError(f"The held-out fraction is {fraction}", expected="more than 0 and less than 1")
    return max(1, int(num_photos * fraction + 0.5))


def _by_seed(photos: Sequence[Photo], count: int, seed: int) -> set[Photo]:
    if count < 0:
        raise LikenessError(f"The held-out count is {count}", expected="0 or more")
    if count and count >= len(photos):
        raise _none_left(count, len(photos))
    return set(sorted(photos, key=lambda photo: hash_json([seed, photo.sha256]))[:count])


def _by_names(photos: Sequence[Photo], names: Sequence[str]) -> set[Photo]:
    chosen = set()
    for name in names:
        matches = {photo for photo in photos if name in (photo.path.name, photo.path.stem, str(photo.path))}
        if not matches:
            known = ", ".join(photo.path.name for photo in photos[:10])
            raise LikenessError(f"No photo is named {name!r}", expected=f"one of {known}")
        chosen |= matches
    return chosen


def _none_left(num_held_out: int, num_photos: int) -> LikenessError:
    return LikenessError(
        f"{num_held_out} photos would be held out of {num_photos}, and none left to train on",
        expected=f"at most {num_photos - 1} held out",
        fix="Hold out fewer, or add photos",
    )
