"""DreamBench's file as it is, and the sets that are made of folders."""

from pathlib import Path

import pytest
from likeness.core.errors import LikenessError
from likeness.subjects.dreambench import (
    INSTRUCTBOOTH,
    PROMPT_FILE,
    load_dreambench,
    load_instructbooth,
    read_prompt_file,
)
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
