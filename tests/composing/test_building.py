"""Datasets: the same scenes however a build goes, nothing repeated or lost, and what hands can do to them."""

from __future__ import annotations

import json
import random
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from likeness.composing.building import Cast, Makers, SceneRecipe, build_dataset, cast_of
from likeness.composing.compose import ComposeConfig
from likeness.composing.dataset import load_dataset, scene_photos, scene_subject
from likeness.composing.exporting import LAYOUTS, export_dataset
from likeness.composing.recaption import PromptingStrategies
from likeness.composing.repaint import Progress
from likeness.composing.sheet import contact_sheet, statistics_of, write_overview
from likeness.core import paths
from likeness.core.errors import LikenessError, RunLocked
from likeness.core.hashing import hash_bytes
from likeness.core.lock import run_lock
from PIL import Image

RECIPE = SceneRecipe(count=6, canvas=ComposeConfig(width=48, height=48), least_subjects=1, min_difference=1)


def finish(work: Any) -> Any:
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def contents(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hash_bytes(p.read_bytes())
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in (".lock", "contact-sheet.jpg", "statistics.json")
    }


@pytest.fixture(scope="module")
def whole(cast: Cast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "scenes"
    finish(build_dataset(folder, cast, RECIPE))
    return folder


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "scenes")
    return tmp_path / "scenes"


class Killed(BaseException):
    """A process that is gone."""


def test_a_build_killed_at_random_points_loses_and_repeats_nothing(
    cast: Cast, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten deaths, each at a random moment of a write; the end is the undisturbed build's, byte for byte."""
    dice, folder = random.Random(5), tmp_path / "scenes"
    for _ in range(10):
        left = dice.randint(1, 60)

        def die(name: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        with monkeypatch.context() as patch, closing(build_dataset(folder, cast, RECIPE, workers=1)) as work:
            patch.setattr(paths, "save_point", die)
            try:
                finish(work)
            except Killed:
                continue
    finish(build_dataset(folder, cast, RECIPE))
    assert contents(folder) == contents(whole)


def test_workers_and_interrupts_change_nothing(cast: Cast, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    for progress in (work := build_dataset(folder, cast, RECIPE, workers=3)):
        assert isinstance(progress, Progress)
        if progress.done == 2:
            work.close()
            break
    assert len(list((folder / "scenes").glob("*.json"))) >= 2
    assert len(finish(build_dataset(folder, cast, RECIPE, workers=1))) == 6
    assert contents(folder) == contents(whole)


def test_a_larger_count_adds_and_other_settings_are_refused(cast: Cast, whole: Path, copied: Path) -> None:
    before = contents(copied)
    more = SceneRecipe(
        **{**{f: getattr(RECIPE, f) for f in ("canvas", "least_subjects", "min_difference")}, "count": 8}
    )
    assert len(finish(build_dataset(copied, cast, more))) == 8
    assert before.items() <= contents(copied).items()
    with pytest.raises(LikenessError, match="another dataset"):
        finish(build_dataset(copied, cast, SceneRecipe(count=6, seed=1)))
    with run_lock(copied), pytest.raises(RunLocked):
        finish(build_dataset(copied, cast, more))


def test_scenes_half_there_are_built_again_and_edits_are_kept(cast: Cast, whole: Path, copied: Path) -> None:
    """A lost mask, a torn record, an edited caption."""
    before = contents(copied)
    next((copied / "masks").glob("000001-*")).unlink()
    (copied / "scenes" / "000002.json").write_text("{")
    (copied / "captions" / "000001.txt").write_text("my own <rabbit1> words")
    with_gaps = load_dataset(copied)
    assert with_gaps.indices == (0, 3, 4, 5) and len(with_gaps.warnings) == 2
    again = finish(build_dataset(copied, cast, RECIPE))
    assert len(again) == 6 and (copied / "captions" / "000001.txt").read_text() == "my own <rabbit1> words"
    after = contents(copied)
    assert {k: v for k, v in after.items() if "000001.txt" not in k} == {
        k: v for k, v in before.items() if "000001.txt" not in k
    }


def test_what_was_changed_by_hand_is_said(whole: Path, copied: Path) -> None:
    (copied / "captions" / "000000.txt").write_text("nobody")
    Image.new("RGB", (48, 48)).save(copied / "images" / "000003.png")
    found = load_dataset(copied, verify=True)
    assert any("caption of scene 0 does not name" in w for w in found.warnings)
    assert "images/000003.png is not what was written" in found.warnings
    assert load_dataset(whole, verify=True).warnings == ()


def test_records_that_lead_elsewhere(copied: Path, tmp_path: Path) -> None:
    path = copied / "scenes" / "000000.json"
    record = json.loads(path.read_text())
    record["image"] = "../../secret.png"
    path.write_text(json.dumps(record))
    with pytest.raises(LikenessError, match="not a path inside"):
        list(load_dataset(copied).scenes())
    for text in ("[]", "{", '{"format": "x"}'):
        (copied / "dataset.json").write_text(text)
        with pytest.raises(LikenessError):
            load_dataset(copied)
    with pytest.raises(LikenessError):
        load_dataset(tmp_path / "none")


def test_masks_boxes_and_captions_agree(whole: Path) -> None:
    dataset = load_dataset(whole)
    for scene in dataset.scenes():
        for one in scene.shown:
            mask = np.asarray(Image.open(whole / one.mask))
            rows, columns = np.nonzero(mask >= 128)
            assert one.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    known = statistics_of(dataset)
    assert known["boxes outside the canvas"] == 0 and known["subjects missing from a caption"] == 0
    write_overview(dataset)
    assert contact_sheet(dataset, columns=3).size == (3 * 256, 2 * 300)


def test_look_alikes_are_drawn_again(cast: Cast, tmp_path: Path) -> None:
    recipe = SceneRecipe(count=4, canvas=ComposeConfig(width=48, height=48), min_difference=12)
    scenes = list(finish(build_dataset(tmp_path / "s", cast, recipe)).scenes())
    hashes = [int(scene.record["difference_hash"], 16) for scene in scenes]
    assert all((a ^ b).bit_count() >= 12 for n, a in enumerate(hashes) for b in hashes[n + 1 :])


# --- for trainers and others --------------------------------------------------------------------------


def test_as_photos_of_one_subject(whole: Path) -> None:
    dataset = load_dataset(whole)
    one = scene_subject(dataset, "rabbit1")
    assert one.photos and not one.warnings
    for photo in one.photos:
        assert photo.caption and photo.caption.count("{}") == 1 and "<" not in photo.caption
        mask = photo.mask()
        assert mask is not None and 0 < mask.mean() < 0.6
    everyone = scene_photos(dataset)
    assert len(everyone) == 6 and all("<" in (photo.caption or "") for photo in everyone)
    with pytest.raises(LikenessError, match="rabbit1, car2, cup3"):
        scene_subject(dataset, "dog")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exports(whole: Path, tmp_path: Path, layout: str) -> None:
    dataset = load_dataset(whole)
    folder = export_dataset(dataset, tmp_path / "out", layout)
    export_dataset(dataset, folder, layout)  # again changes nothing
    assert len(list(folder.rglob("*.png"))) == 6
    if layout == "huggingface":
        rows = [json.loads(line) for line in (folder / "train" / "metadata.jsonl").read_text().splitlines()]
        scene = next(dataset.scenes())
        left, top, right, bottom = scene.shown[0].box
        assert rows[0]["text"] == scene.caption
        assert rows[0]["objects"]["bbox"][0] == [left, top, right - left, bottom - top]
    else:
        assert len(list(folder.rglob("*.txt"))) == 6
    if layout == "custom_diffusion":
        concepts = json.loads((folder / "concepts_list.json").read_text())
        assert concepts[0]["instance_prompt"] == "photo of a <rabbit1> rabbit"


def test_exports_that_are_not_possible(whole: Path, tmp_path: Path) -> None:
    dataset = load_dataset(whole)
    with pytest.raises(LikenessError, match="kohya, huggingface"):
        export_dataset(dataset, tmp_path, "x")
    with pytest.raises(LikenessError, match="into itself"):
        export_dataset(dataset, whole, "kohya")


def test_casts_that_are_none(subjects: list[Any], caplog: Any) -> None:
    with pytest.raises(LikenessError, match="0 subjects"):
        cast_of([])
    with pytest.raises(LikenessError, match="both named"):
        cast_of([subjects[0], subjects[0]])
    cast_of(subjects[:1])
    assert "one subject" in caplog.text
    for wrong in ({"count": 0}, {"least_subjects": 3, "most_subjects": 2}, {"most_subjects": 9}):
        with pytest.raises(LikenessError):
            SceneRecipe(**wrong)


def test_repainting_and_strategies_go_through_a_build(cast: Cast, tmp_path: Path) -> None:
    class Painter:
        name = "white"

        def paint(self, start: Any, keep: Any, config: Any, scene: str, *, seed: int) -> Any:
            yield Progress("repainting", 1, 1)
            return Image.new("RGB", start.size, (250, 250, 250))

    recipe = SceneRecipe(
        count=2, canvas=ComposeConfig(width=48, height=48), min_difference=0,
        strategies=PromptingStrategies(composition_token="<scene>"),
    )  # fmt: skip
    dataset = finish(build_dataset(tmp_path / "s", cast, recipe, Makers(inpainter=Painter())))
    for scene in dataset.scenes():
        assert scene.record["provenance"]["background"]["repainted by"] == "white"
        assert scene.caption.startswith("<scene> ")
        corner = np.asarray(Image.open(dataset.folder / scene.image))[0, 0]
        assert tuple(corner) == (250, 250, 250)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
