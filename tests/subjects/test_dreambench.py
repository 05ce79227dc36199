"""DreamBench's file as it is, and the sets that are made of folders."""

from pathlib import Path

import pytest
from likeness.core.errors import LikenessError
from likeness.subjects.dreambench import (
    INSTRUCTBOOTH,
    LAYOUTS,
    PROMPT_FILE,
    load_benchmark,
    load_dreambench,
    load_dreambench_plus,
    load_instructbooth,
    read_prompt_file,
    slotted,
)
from likeness.subjects.prompt_pool import ACTIVITIES
from PIL import Image

TEXT = """Classes

subject_name,class
backpack,backpack
dog6,dog
bear_plushie,stuffed animal

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a santa hat'.format(unique_token, class_token)
]
"""


def folder_with(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        for n in range(2):
            Image.effect_noise((20 + n, 16), 80).convert("RGB").save(root / name / f"0{n}.jpg")
    return root


def test_the_prompt_file_is_read_as_text(tmp_path):
    (tmp_path / PROMPT_FILE).write_text(TEXT)
    found = read_prompt_file(tmp_path / PROMPT_FILE)
    assert found.classes == {"backpack": "backpack", "dog6": "dog", "bear_plushie": "stuffed animal"}
    assert found.of("backpack") == ("a {} in the jungle", "a red {}")
    assert found.of("dog6") == ("a {} wearing a santa hat",)


def test_subjects_that_are_there_are_loaded(tmp_path):
    (folder_with(tmp_path, "dog6", "backpack", "other") / PROMPT_FILE).write_text(TEXT)
    items = load_dreambench(tmp_path)
    assert [item.subject.name for item in items] == ["backpack", "dog6"]
    assert items[1].subject.class_noun == "dog" and len(items[1].subject.photos) == 2
    assert [item.practice for item in items] == ["dreambench objects", "dreambench live"]


def test_instructbooths_set(tmp_path):
    items = load_instructbooth(folder_with(tmp_path, "cat", "teddy_bear", "elsewhere"))
    assert [(i.subject.name, i.subject.class_noun, len(i.prompts)) for i in items] == [
        ("cat", "cat", 5),
        ("teddy_bear", "teddy bear", 5),
    ]
    assert items[0].prompts[0] == "a {} playing soccer" and len(INSTRUCTBOOTH) == 8


@pytest.mark.parametrize("text", ["", "Classes\n\ncat,cat\n", TEXT.replace("Live", "Other")])
def test_files_that_are_not_dreambenchs(text, tmp_path):
    (tmp_path / PROMPT_FILE).write_text(text)
    with pytest.raises(LikenessError, match="has no"):
        read_prompt_file(tmp_path / PROMPT_FILE)


def test_nothing_there(tmp_path):
    (tmp_path / PROMPT_FILE).write_text(TEXT)
    for load in (load_dreambench, load_instructbooth):
        with pytest.raises(LikenessError, match="none of"):
            load(tmp_path)
    with pytest.raises(LikenessError, match="cannot be read"):
        load_dreambench(tmp_path / "none")


def plus(root: Path, place: str, text: str | None) -> Path:
    picture = (root / "images" / place).with_suffix(".jpg")
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((20, 16), 80).convert("RGB").save(picture)
    if text is not None:
        told = (root / "captions" / place).with_suffix(".txt")
        told.parent.mkdir(parents=True, exist_ok=True)
        told.write_text(text)
    return root


def test_dreambench_plus(tmp_path):
    plus(tmp_path, "live_subject/animal/00", "kitten\nA kitten on a rug.\nRainy street, oil painting\n")
    plus(tmp_path, "object/01", "Teapot\nA teapot in a kitchen.\n")
    items = load_dreambench_plus(tmp_path)
    assert [i.subject.name for i in items] == ["live_subject-animal-00", "object-01"]
    assert items[0].subject.class_noun == "kitten" and len(items[0].subject.photos) == 1
    assert items[0].prompts == ("A {} on a rug.", "{}, Rainy street, oil painting")
    assert items[1].prompts == ("A {} in a kitchen.",)
    assert [item.practice for item in items] == ["dreambench live", "dreambench objects"]


@pytest.mark.parametrize(
    ("text", "what"), [(None, "has no prompts"), ("cat\n", "has no prompts"), ("", "no pr")]
)
def test_dreambench_plus_without_prompts(tmp_path, text, what):
    with pytest.raises(LikenessError, match=what):
        load_dreambench_plus(plus(tmp_path, "object/00", text))


def test_a_prompt_names_the_subject_once():
    assert slotted("The cat sees a cat", "cat") == "The {} sees a cat"
    assert slotted("A category", "cat") == "{}, A category"  # whole words alone


def test_a_benchmark_by_its_layout(tmp_path):
    (folder_with(tmp_path, "dog6", "backpack") / PROMPT_FILE).write_text(TEXT)
    whole = load_benchmark(tmp_path, "dreambench", identifier="zwx")
    assert whole.images_per_prompt == 4 and whole.items[0].subject.identifier == "zwx"
    assert whole.listing().splitlines()[0] == "backpack: a {} in the jungle"
    one = whole.reduced(most_subjects=1, held_out=1)
    assert [len(i.subject.held_out) for i in one.items] == [1]
    assert len({whole.content_hash, one.content_hash, whole.reduced(most_subjects=1).content_hash}) == 3
    with pytest.raises(LikenessError, match="no layout"):
        load_benchmark(tmp_path, "imagenet")
    with pytest.raises(LikenessError, match="none left to train on"):
        whole.reduced(held_out=2)


def test_every_item_practises_a_list_that_exists(tmp_path):
    (folder_with(tmp_path, "dog6", "backpack", "cat", "cup") / PROMPT_FILE).write_text(TEXT)
    for layout in ("dreambench", "instructbooth"):
        items = load_benchmark(tmp_path, layout).items
        assert all(item.practice in ACTIVITIES for item in items)
    assert {name: known.images_per_prompt for name, known in LAYOUTS.items()} == {
        "dreambench": 4, "instructbooth": 10, "dreambench++": 1,
    }  # fmt: skip


def test_toyboxs_own_is_in_dreambenchs_form(tmp_path):
    from likeness.backbones.toybox.dreambench import write_dreambench

    whole = load_benchmark(write_dreambench(tmp_path / "toy", subjects=2), "dreambench")
    assert [i.subject.name for i in whole.items] == ["cat", "car"]
    assert all(len(i.prompts) == 25 and len(i.subject.photos) == 5 for i in whole.items)
    assert [i.practice for i in whole.items] == ["dreambench live", "dreambench objects"]
    live, thing = (set(i.prompts) for i in whole.items)
    assert "a {} wearing a hat" in live - thing and "a red {}" in live & thing
    practised = {f"a {{}} {words}" for words in ACTIVITIES["toybox"].seen}
    assert not practised & (live | thing)
    again = load_benchmark(write_dreambench(tmp_path / "again", subjects=2), "dreambench")
    assert again.content_hash == whole.content_hash
