"""The study's file: what is wrong with it is said before anybody is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from likeness.core.errors import LikenessError
from likeness.scoring.study.definition import draft, open_study
from study_maker import make_study, paint


def test_pictures_are_paired_by_name(tmp_path: Path) -> None:
    study = make_study(tmp_path, samples=4)
    assert [s.prompt for s in study.samples] == ["a cat playing soccer"] * 2 + ["a dog playing soccer"] * 2
    assert all(s.pictures["Ours"].path.name == s.pictures["Theirs"].path.name for s in study.samples)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"title": " "}, "no title"),
        ({"methods": {}}, "no methods"),
        ({"items": []}, "no items"),
        ({"compare": "Nobody"}, "compare names 'Nobody'"),
        ({"raters": 0}, "raters is 0"),
        ({"raters": True}, "raters is bool"),
        ({"raters": "7"}, "raters is str"),
        ({"questions_per_rater": 0}, "questions_per_rater is 0"),
        ({"seeds": 1}, "seeds is not known"),
        ({"format": "another"}, 'lacks "format"'),
        ({"items": [{"subject": "bird", "prompt": "p", "images": "i"}]}, "the subject 'bird'"),
        ({"items": [{"subject": "cat", "prompt": " ", "images": "cat/soccer"}]}, "no prompt"),
        ({"items": [{"subject": "cat", "prompt": 5, "images": "i"}]}, "must be texts"),
        ({"items": [{"subject": "cat"}]}, "an item is not"),
        ({"items": [{"subject": "cat", "prompt": "p", "images": "cat/soccer"}] * 2}, "there twice"),
        ({"methods": {"Ours": 3}}, "give each name a folder"),
        ({"methods": {"Ours": "nowhere"}}, "no pictures at"),
        ({"subjects": {"cat": "nowhere", "dog": "photos/dog"}}, "no pictures at"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(LikenessError, match=told):
        make_study(tmp_path, **settings)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "likeness study 1"}'])
def test_a_file_that_is_no_study(tmp_path: Path, text: str) -> None:
    path = tmp_path / "study.json"
    path.write_text(text)
    with pytest.raises(LikenessError, match="is not a study"):
        open_study(path)
    with pytest.raises(LikenessError, match="There is no study"):
        open_study(tmp_path / "none.json")


def test_methods_with_different_numbers_of_pictures(tmp_path: Path) -> None:
    make_study(tmp_path, samples=4)
    (tmp_path / "Ours" / "cat" / "soccer" / "000.bmp").unlink()
    with pytest.raises(LikenessError, match=r"different numbers.*Ours 1, Theirs 2"):
        open_study(tmp_path / "study.json")


def test_a_study_is_drafted_from_folders(tmp_path: Path) -> None:
    make_study(tmp_path, samples=2)
    (tmp_path / "Ours" / "dog" / "soccer" / "prompt.txt").write_text("a dog plays, happily\n")
    methods = {"Ours": tmp_path / "Ours", "Theirs": tmp_path / "Theirs"}
    study = draft(tmp_path / "new.json", methods=methods, photos=tmp_path / "photos", title="New")
    assert [s.prompt for s in study.samples] == ["soccer", "a dog plays, happily"]
    assert json.loads((tmp_path / "new.json").read_text())["methods"] == {"Ours": "Ours", "Theirs": "Theirs"}
    with pytest.raises(LikenessError, match="already there"):
        draft(tmp_path / "new.json", methods=methods, photos=tmp_path / "photos", title="New")


def test_a_draft_that_fails_leaves_nothing(tmp_path: Path) -> None:
    make_study(tmp_path, samples=2)
    paint(tmp_path / "Theirs" / "cat" / "soccer" / "more.bmp", (9, 9, 9))
    methods = {"Ours": tmp_path / "Ours", "Theirs": tmp_path / "Theirs"}
    for wrong in (methods, {}, {"Ours": tmp_path / "nowhere"}):
        with pytest.raises(LikenessError):
            draft(tmp_path / "new.json", methods=wrong, photos=tmp_path / "photos", title="New")
    assert not (tmp_path / "new.json").exists()
