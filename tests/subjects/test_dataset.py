"""Datasets with a split test set: their layout, their captions, their leaks."""

from __future__ import annotations

import json
import os
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.core.errors import LikenessError
from likeness.subjects.dataset import Dataset, listing, load_dataset, save_captions, with_edits
from likeness.subjects.leakage import find_leaks, neutral, perceptual_hash, tells
from PIL import Image


def noise(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    import random

    dice = random.Random(seed)
    small = Image.new("RGB", (8, 6))
    small.putdata([tuple(dice.randrange(256) for _ in range(3)) for _ in range(48)])
    return small.resize(size, Image.Resampling.BICUBIC)


def write(root: Path, *, test: int = 2, captions: bool = True) -> Path:
    for number, (name, noun) in enumerate([("dog1", "dog"), ("cup2", "cup")]):
        folder = root / name
        for part, count in (("train", 2), ("test", test)):
            (folder / part).mkdir(parents=True)
            for n in range(count):
                noise(100 * number + 10 * (part == "test") + n).save(folder / part / f"{n:02d}.png")
        (folder / "meta.json").write_text(json.dumps({"class": noun, "living": noun == "dog"}))
        table = {f"{n:02d}.png": {"0": f"A {{}} on rock {n}.", "1": "A {} at sea."} for n in range(test)}
        if captions:
            (folder / "captions.json").write_text(json.dumps(table))
    return root


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return load_dataset(write(tmp_path / "data"))


def test_the_papers_layout(dataset: Dataset) -> None:
    assert [entry.name for entry in dataset.entries] == ["cup2", "dog1"]
    dog = dataset.entry("dog1")
    assert (dog.subject.class_noun, dog.living) == ("dog", True)
    assert (len(dog.subject.photos), len(dog.subject.held_out)) == (2, 2)
    assert dog.captions == (("A {} on rock 0.", "A {} at sea."), ("A {} on rock 1.", "A {} at sea."))
    assert dataset.num_captions() == 8
    assert [photo.caption for photo in dog.split.held_out] == ["A {} on rock 0.", "A {} on rock 1."]


def test_a_test_photos_caption_never_goes_to_the_training_photo_of_its_name(dataset: Dataset) -> None:
    subject = dataset.entry("dog1").split
    assert subject.photos[0].path.name == subject.held_out[0].path.name
    assert all(photo.caption is None for photo in subject.photos)


def test_a_subject_that_is_not_there_is_named(dataset: Dataset) -> None:
    with pytest.raises(LikenessError, match="cup2, dog1"):
        dataset.entry("cow")


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("meta.json", '{"kind": "dog"}', "class"),
        ("meta.json", "{", "JSON"),
        ("captions.json", '{"00.png": ["A dog at sea"], "01.png": ["A {}"]}', "where the subject is"),
        ("captions.json", '{"00.png": ["A {} at sea"]}', "no caption"),
        ("captions.json", "[1]", "no captions"),
        ("captions.json", '{"00.png": 3}', "no caption"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, file: str, content: str, says: str) -> None:
    (write(tmp_path / "data") / "dog1" / file).write_text(content)
    with pytest.raises(LikenessError, match=says):
        load_dataset(tmp_path / "data")


def test_a_folder_without_subjects_or_test_photos(tmp_path: Path) -> None:
    with pytest.raises(LikenessError, match="no subjects"):
        load_dataset(tmp_path)
    with pytest.raises(LikenessError, match="no test photos"):
        load_dataset(write(tmp_path / "data", test=0))


def test_either_file_can_be_edited(dataset: Dataset) -> None:
    dog = dataset.entry("dog1")
    assert dog.folder is not None
    save_captions(dog)
    root, sheet = dog.folder.parent, dog.folder / "captions.csv"
    assert load_dataset(root).content_hash == dataset.content_hash
    sheet.write_text(sheet.read_text().replace("A {} at sea.", '"A {}, at sea."'))
    later = sheet.stat().st_mtime_ns + 10**9
    os.utime(sheet, ns=(later, later))
    assert load_dataset(root).entry("dog1").captions[0][1] == "A {}, at sea."


def test_edits_by_line_are_the_listing_read_back(dataset: Dataset) -> None:
    assert with_edits(dataset, listing(dataset)).content_hash == dataset.content_hash
    edited = with_edits(
        dataset, "dog1/00.png 1: A {} asleep: at last.\ndog1/01.png 0:\ncup2/00.png 9: {} new"
    )
    assert edited.entry("dog1").captions == (("A {} on rock 0.", "A {} asleep: at last."), ("A {} at sea.",))
    assert edited.entry("cup2").captions[0][2] == "{} new"


@pytest.mark.parametrize(
    "edit", ["nonsense", "cow/00.png 0: {}", "dog1/77.png 0: {}", "dog1/00.png 0: a dog"]
)
def test_an_edit_that_fits_nothing_is_named(dataset: Dataset, edit: str) -> None:
    with pytest.raises(LikenessError):
        with_edits(dataset, edit)


# --- leaks ----------------------------------------------------------------------------------------------


def test_a_test_photo_that_was_trained_on_is_found(dataset: Dataset) -> None:
    dog = dataset.entry("dog1")
    assert not find_leaks(dataset) and dog.folder is not None
    again = noise(0).resize((50, 38))  # smaller, and through JPEG
    again.save(dog.folder / "test" / "00.jpg", quality=70)
    (dog.folder / "test" / "00.png").unlink()
    (dog.folder / "captions.json").write_text('{"00.jpg": ["A {}"], "01.png": ["A {}"]}')
    (leak,) = find_leaks(load_dataset(dog.folder.parent))
    assert (leak.kind, leak.where) == ("photo", "00.jpg") and "00.png" in leak.why


def test_unrelated_pictures_differ_in_about_half_of_the_bits() -> None:
    apart = [int((perceptual_hash(noise(n)) != perceptual_hash(noise(n + 50))).sum()) for n in range(20)]
    assert min(apart) > 70


def test_captions_that_tell_the_look_or_kind_are_found(dataset: Dataset) -> None:
    told = with_edits(dataset, "dog1/00.png 0: A brown {} on a rock.\ndog1/01.png 0: A {} beside a dog.")
    assert [leak.where for leak in find_leaks(told)] == ["00.png 0", "01.png 0"]


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        ("A small brown dog sits on a red sofa.", "A {} sits on a red sofa."),
        ("The fluffy, white dog with long brown fur runs.", "The {} runs."),
        ("A {} with white paws lies on a bed.", "A {} lies on a bed."),
        ("A {} with a red hat lies on a bed.", "A {} with a red hat lies on a bed."),
        ("An old striped {} on green grass.", "An old {} on green grass."),
        ("Dog in a park.", "{} in a park."),
        ("A sleeping {} in a blue box.", "A sleeping {} in a blue box."),
    ],
)
def test_what_gives_the_subject_away_is_taken_out(caption: str, wanted: str) -> None:
    assert neutral(caption, ["dog"]) == wanted
    assert not tells(wanted, ["dog"])


@pytest.mark.parametrize("caption", ["A {} on a white blanket.", "A {} wearing a red Santa hat sits."])
def test_what_the_paper_allows_is_let_be(caption: str) -> None:
    assert neutral(caption, ["dog"]) == caption and not tells(caption, ["dog"])


@given(st.text(string.ascii_letters + " ,.{}'", max_size=60))
@settings(max_examples=80, deadline=None)
def test_taking_out_twice_takes_out_no_more(text: str) -> None:
    once = neutral(f"A {{}} {text}", ["dog"])
    assert "{}" in once and neutral(once, ["dog"]) == once
