import json
import os
import shutil

import numpy as np
import pytest
from likeness.core.errors import LikenessError
from likeness.subjects import load_folder
from PIL import Image


def names(photos):
    return [photo.path.name for photo in photos]


def load(folder, **options):
    return load_folder(folder, **{"class_noun": "dog", **options})


def test_natural_order_whatever_the_disk_says(tmp_path, paint, monkeypatch):
    order = ["A1.png", "a2.png", "a10.png", "b.png", "sub/a3.png"]
    for number, name in enumerate(order):
        paint(tmp_path / name, number)
    expected = load(tmp_path)
    assert [p.path.relative_to(tmp_path.resolve()).as_posix() for p in expected.photos] == order
    walk = os.walk

    def backwards(*args, **options):
        for parent, folders, files in walk(*args, **options):
            folders[:] = folders[::-1]
            yield parent, folders, files[::-1]

    monkeypatch.setattr(os, "walk", backwards)
    assert load(tmp_path) == expected


def test_recursion_can_be_off(tmp_path, paint):
    paint(tmp_path / "a.png", 1)
    paint(tmp_path / "sub" / "b.png", 2)
    assert names(load(tmp_path, recursive=False).photos) == ["a.png"]


def test_what_computers_leave_behind_is_ignored(tmp_path, paint):
    paint(tmp_path / "a.png", 1)
    for junk in ("._a.png", ".hidden.png", ".git/b.png", "__MACOSX/c.png", "notes.md", "Thumbs.db"):
        (tmp_path / junk).parent.mkdir(exist_ok=True)
        (tmp_path / junk).write_bytes(b"junk")
    assert names(load(tmp_path).photos) == ["a.png"]


def test_words_and_name(tmp_path, paint):
    paint(tmp_path / "my: dog" / "a.png", 1)
    subject = load(tmp_path / "my: dog", class_noun="  toy  dog ", description=" red\nhat ")
    assert (subject.name, subject.class_noun, subject.description) == ("my_ dog", "toy dog", "red hat")
    with pytest.raises(LikenessError, match="class noun is empty"):
        load(tmp_path, class_noun=" ")
    with pytest.raises(LikenessError, match="identifier is empty"):
        load(tmp_path, identifier="")
    with pytest.raises(LikenessError, match="subject name"):
        load(tmp_path, name="../evil")


def test_missing_and_empty_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.txt").write_text("a dog")
    (tmp_path / "file").write_text("")
    cases = {
        "missing": "does not exist",
        "empty": "has no photos",
        "words": r"1 other files \(a\.txt",
        "file": "is a file",
    }
    for folder, message in cases.items():
        with pytest.raises(LikenessError, match=message):
            load(tmp_path / folder)
    with pytest.raises(LikenessError):
        load("")
    with pytest.raises(LikenessError):
        load(tmp_path / "a\0b")


def test_a_broken_photo_is_named(tmp_path, paint):
    paint(tmp_path / "a.png", 1)
    (tmp_path / "broken.jpg").write_bytes(b"")
    with pytest.raises(LikenessError, match=r"broken\.jpg"):
        load(tmp_path)


def test_one_photo_warns(tmp_path, paint):
    paint(tmp_path / "a.png", 1)
    assert any("one photo" in warning for warning in load(tmp_path).warnings)
    paint(tmp_path / "b.png", 2)
    assert load(tmp_path).warnings == ()


def test_a_copy_is_left_out_and_named(tmp_path, paint):
    paint(tmp_path / "a.png", 1)
    paint(tmp_path / "b.bmp", 1)
    paint(tmp_path / "c.png", 2)
    subject = load(tmp_path)
    assert names(subject.photos) == ["a.png", "c.png"]
    assert any("b.bmp is the same picture" in warning for warning in subject.warnings)


def test_links_that_leave_the_folder_are_not_followed(tmp_path, paint):
    secret = paint(tmp_path / "secret" / "s.png", 9)
    paint(tmp_path / "dog" / "a.png", 1)
    (tmp_path / "dog" / "link.png").symlink_to(secret)
    (tmp_path / "dog" / "folder").symlink_to(secret.parent)
    (tmp_path / "dog" / "twin.png").symlink_to("a.png")
    (tmp_path / "dog" / "loop.png").symlink_to("loop.png")
    (tmp_path / "dog" / "up").symlink_to("..")
    os.mkfifo(tmp_path / "dog" / "pipe.png")
    (tmp_path / "secret" / "words").write_text("a secret dog")
    for name in ("a.txt", "captions.json", "a_mask.png"):
        (tmp_path / "dog" / name).symlink_to(tmp_path / "secret" / "words")
    subject = load(tmp_path / "dog")
    assert names(subject.photos) == ["a.png"]
    assert subject.photos[0].caption is None and subject.photos[0].mask_path is None
    assert any("link.png" in warning for warning in subject.warnings)
    (tmp_path / "entrance").symlink_to(tmp_path / "dog")
    assert names(load(tmp_path / "entrance").photos) == ["a.png"]


# --- captions ------------------------------------------------------------------------------------


def captions_of(folder):
    return {photo.path.name: photo.caption for photo in load(folder).photos}


def test_captions_from_every_kind_of_file(tmp_path, paint):
    for number, name in enumerate(("a.png", "b.png", "sub/c.png", "sub/d.png", "e.png")):
        paint(tmp_path / name, number)
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf a photo of {}\r\n on the beach \n")
    (tmp_path / "sub" / "c.caption").write_text("{} asleep")
    table = {"a.png": "not this", "b.png": "{} in b", "sub/d.png": ["{} in d", "{} again"]}
    (tmp_path / "captions.json").write_text(json.dumps(table))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "e.png", "text": "{} in e"}\n\n')
    assert captions_of(tmp_path) == {
        "a.png": "a photo of {} on the beach",
        "b.png": "{} in b",
        "c.png": "{} asleep",
        "d.png": "{} in d",
        "e.png": "{} in e",
    }
    assert any("2 captions for sub/d.png" in warning for warning in load(tmp_path).warnings)


def test_other_forms_of_the_table(tmp_path, paint):
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        paint(tmp_path / name, number)
    rows = [{"image": "a.png", "caption": "{} a"}, {"file": "b", "prompt": "{} b"}]
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    assert captions_of(tmp_path) == {"a.png": "{} a", "b.png": "{} b", "c.png": None}
    (tmp_path / "captions.json").write_text(json.dumps({"a": {"0": "{} first", "1": "{} second"}}))
    assert captions_of(tmp_path)["a.png"] == "{} first"


def test_captions_that_miss_the_subject_warn(tmp_path, paint):
    for number, caption in enumerate(("a photo of {}", "a Dog", "sks thing", "a beach", "   ")):
        paint(tmp_path / f"{number}.png", number)
        (tmp_path / f"{number}.txt").write_text(caption)
    warnings = " ".join(load(tmp_path).warnings)
    assert "3.png has neither" in warnings and "4.txt is empty" in warnings
    assert not any(f"{number}.png" in warnings for number in (0, 1, 2))


BAD_TABLES = [
    *("{", "3", '"a"', "[1]", "[" * 100_000, '[{"text": "x"}]'),
    *('{"a.png": 3}', '{"a.png": []}', '{"a.png": {}}', '{"a.png": null}', '{"a.png": [3]}'),
]


@pytest.mark.parametrize("text", BAD_TABLES)
def test_malformed_tables_are_named(tmp_path, paint, text):
    paint(tmp_path / "a.png", 1)
    (tmp_path / "captions.json").write_text(text)
    with pytest.raises(LikenessError, match=r"captions\.json"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00a", b"\x80\x04K\x01.", b"a\x00b"])
def test_captions_that_are_not_text_are_named(tmp_path, paint, content):
    paint(tmp_path / "a.png", 1)
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(LikenessError, match=r"a\.txt"):
        load(tmp_path)


def test_a_huge_caption_file_is_not_read(tmp_path, paint):
    paint(tmp_path / "a.png", 1)
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(LikenessError, match="too large"):
        load(tmp_path)


# --- masks ---------------------------------------------------------------------------------------


def test_masks_by_name_and_by_folder(tmp_path, paint):
    for number, name in enumerate(("a.jpg", "b.png", "c.png", "gas_mask.png")):
        paint(tmp_path / name, number)
    half = Image.fromarray(np.repeat(np.uint8([[0, 0, 0, 0, 255, 255, 255, 255]]), 6, 0))
    (tmp_path / "masks").mkdir()
    for name in ("a_mask.png", "b.mask.png", "masks/c.png", "masks/stray.png"):
        half.save(tmp_path / name)
    subject = load(tmp_path)
    assert names(subject.photos) == ["a.jpg", "b.png", "c.png", "gas_mask.png"]
    for photo in subject.photos[:3]:
        mask = photo.mask()
        assert mask.shape == (6, 8) and mask.dtype == np.float32 and mask.mean() == 0.5
    assert subject.photos[3].mask() is None
    warnings = " ".join(subject.warnings)
    assert "3 of 4 photos have a mask" in warnings and "stray.png belongs to no photo" in warnings


def test_masks_in_subfolders(tmp_path, paint):
    paint(tmp_path / "one" / "a.png", 1)
    paint(tmp_path / "two" / "a.png", 2)
    paint(tmp_path / "masks" / "one" / "a.png", 3, mode="L")
    paint(tmp_path / "two" / "masks" / "a_mask.png", 4, mode="L")
    assert [photo.mask_path.parent.name for photo in load(tmp_path).photos] == ["one", "masks"]


def test_bad_masks(tmp_path, paint):
    paint(tmp_path / "a.png", 1)
    Image.new("L", (8, 6)).save(tmp_path / "a_mask.png")
    assert any("a_mask.png is empty" in warning for warning in load(tmp_path).warnings)
    Image.new("L", (6, 8)).save(tmp_path / "a_mask.png")
    with pytest.raises(LikenessError, match=r"a_mask\.png"):
        load(tmp_path)


# --- layouts -------------------------------------------------------------------------------------


def test_kohya_folders(tmp_path, paint):
    paint(tmp_path / "10_sks dog" / "a.png", 1)
    paint(tmp_path / "2024_summer" / "b.png", 2)
    subject = load(tmp_path, class_noun="")
    assert subject.class_noun == "dog"
    assert [photo.repeats for photo in subject.photos] == [10, 1]
    assert any("10_sks dog are shown 10 times" in warning for warning in subject.warnings)
    assert load(tmp_path / "10_sks dog", class_noun="").photos[0].repeats == 10
    paint(tmp_path / "5_cat" / "c.png", 3)
    with pytest.raises(LikenessError, match="cat, sks dog"):
        load(tmp_path, class_noun="")
    assert load(tmp_path, class_noun="pet").class_noun == "pet"


@pytest.mark.parametrize("kept", ["held_out", "test", "held-out", "Test"])
def test_held_out_by_folder(tmp_path, paint, kept):
    for number in range(3):
        paint(tmp_path / "train" / f"{number}.png", number)
        paint(tmp_path / kept / f"{number}.png", 10 + number)
    subject = load(tmp_path)
    assert {p.path.parent.name for p in subject.photos} == {"train"}
    assert {p.path.parent.name for p in subject.held_out} == {kept}
    assert subject.split == "by folder: 3 of 6"
    shutil.copy(tmp_path / "train" / "1.png", tmp_path / kept / "copy.png")
    with pytest.raises(LikenessError, match=r"copy\.png is the same picture as .*train/1\.png"):
        load(tmp_path)
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(LikenessError, match="no photo to train on"):
        load(tmp_path)


# --- content -------------------------------------------------------------------------------------


def test_the_content_hash_follows_content_alone(tmp_path, paint):
    for number in range(2):
        paint(tmp_path / "one" / f"a{number}.png", number)
        paint(tmp_path / "other" / f"b{number}.bmp", number)
    one, other = load(tmp_path / "one"), load(tmp_path / "other")
    assert one.content_hash == other.content_hash

    def changed(change):
        change()
        return load(tmp_path / "other").content_hash

    hashes = [
        one.content_hash,
        load(tmp_path / "one", class_noun="cat").content_hash,
        load(tmp_path / "one", identifier="zwx").content_hash,
        load(tmp_path / "one", description="red").content_hash,
        changed(lambda: (tmp_path / "other" / "b0.txt").write_text("a {}")),
        changed(lambda: Image.new("L", (8, 6), 255).save(tmp_path / "other" / "b0_mask.png")),
        changed(lambda: Image.new("L", (8, 6), 99).save(tmp_path / "other" / "b0_mask.png")),
        changed(lambda: paint(tmp_path / "other" / "b1.bmp", 7)),
        changed(lambda: paint(tmp_path / "other" / "test" / "t.png", 8)),
    ]
    assert len(set(hashes)) == len(hashes)
