from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from likeness.core.errors import LikenessError
from likeness.subjects import Photo, Subject, split_held_out


def subject_of(num_photos):
    photos = tuple(
        Photo(path=Path(f"/photos/{n}.png"), sha256=f"{n:064x}", width=8, height=8) for n in range(num_photos)
    )
    return Subject(name="dog", class_noun="dog", photos=photos)


def held(subject):
    return [int(photo.path.stem) for photo in subject.held_out]


@given(st.integers(2, 30), st.data(), st.integers(0, 99))
def test_a_split_is_a_partition_in_order(num_photos, data, seed):
    subject = subject_of(num_photos)
    count = data.draw(st.integers(0, num_photos - 1))
    split = split_held_out(subject, count=count, seed=seed)
    assert len(split.held_out) == count
    for part in (split.photos, split.held_out):
        assert list(part) == sorted(part, key=lambda photo: photo.sha256)
    assert set(split.photos) | set(split.held_out) == set(subject.photos)
    assert not set(split.photos) & set(split.held_out)
    assert split_held_out(split, count=count, seed=seed).held_out == split.held_out


def test_the_choice_goes_by_seed_and_picture():
    subject = subject_of(20)
    splits = {seed: held(split_held_out(subject, count=5, seed=seed)) for seed in range(5)}
    assert len({tuple(names) for names in splits.values()}) == 5
    assert splits[0] == held(split_held_out(subject, count=5))
    moved = tuple(replace(p, path=p.path.with_name(f"x{p.path.name}")) for p in subject.photos[::-1])
    again = split_held_out(replace(subject, photos=moved), count=5, seed=3)
    assert {p.sha256 for p in again.held_out} == {f"{n:064x}" for n in splits[3]}


@pytest.mark.parametrize(("fraction", "expected"), [(0.01, 1), (0.25, 3), (0.5, 5), (0.9, 9)])
def test_fractions(fraction, expected):
    assert len(split_held_out(subject_of(10), fraction=fraction).held_out) == expected


def test_a_fraction_that_leaves_none():
    with pytest.raises(LikenessError, match="none left"):
        split_held_out(subject_of(10), fraction=0.95)


def test_names():
    split = split_held_out(subject_of(5), names=["3.png", "1", "/photos/4.png"])
    assert held(split) == [1, 3, 4] and split.split == "by name: 3 of 5"
    with pytest.raises(LikenessError, match=r"No photo is named '9'"):
        split_held_out(subject_of(5), names=["9"])


def test_the_split_is_recorded():
    assert split_held_out(subject_of(5), count=2, seed=7).split == "by seed 7: 2 of 5"
    assert split_held_out(subject_of(5), count=0).split == ""


IMPOSSIBLE = [
    *({"count": 5}, {"count": 6}, {"count": -1}),
    *({"fraction": 0.0}, {"fraction": 1.0}, {"fraction": float("nan")}),
    {"names": ["0", "1", "2", "3", "4"]},
]


@pytest.mark.parametrize("options", IMPOSSIBLE)
def test_impossible_splits(options):
    with pytest.raises(LikenessError):
        split_held_out(subject_of(5), **options)


def test_one_photo_cannot_be_split():
    with pytest.raises(LikenessError, match="none left to train on"):
        split_held_out(subject_of(1), count=1)


@pytest.mark.parametrize("options", [{}, {"count": 1, "fraction": 0.5}])
def test_one_choice_is_given(options):
    with pytest.raises(ValueError, match="exactly one"):
        split_held_out(subject_of(5), **options)


def test_copies_do_not_leak():
    subject = subject_of(3)
    copy = replace(subject.photos[0], path=Path("/photos/copy.png"))
    with pytest.raises(LikenessError, match="the same picture"):
        split_held_out(replace(subject, photos=(*subject.photos, copy)), names=["copy"])
