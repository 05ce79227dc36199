"""The scene nodes and Custom Diffusion's, from photos to a score, under inference mode as ComfyUI runs
them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from likeness.backbones.base import BaseModel
from likeness.composing.compose import ComposeConfig
from likeness.composing.layout import Layout
from likeness.composing.recaption import PromptingStrategies
from likeness.composing.repaint import RepaintConfig
from likeness.composing.toybox import ToyboxBackgrounds, ToyboxCaptioner, ToyboxProposer
from likeness.core.errors import LikenessError
from likeness.nodes import generating, host, multisubject, subjects
from likeness.nodes.scenes.compose import ComposeScene
from likeness.nodes.scenes.cutout import CutOutSubjects
from likeness.nodes.scenes.dataset import (
    BuildSceneDataset,
    ExportSceneDataset,
    LoadSceneDataset,
    SubjectOfScenes,
)
from likeness.nodes.scenes.layout import LayoutScene
from likeness.nodes.scenes.makers import backgrounds_of, captioner_of, proposer_of
from likeness.nodes.scenes.recaption import RecaptionScene
from likeness.nodes.scenes.repaint import FinishRepaint, PrepareRepaint, RepaintBackground
from likeness.trainers.custom_diffusion import CustomDiffusionConfig

WORDS = {"identifier": "sks", "description": ""}


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[host.Plain]:
    before = host.current
    own = host.Plain()
    own.place(output=tmp_path / "output", input=tmp_path / "input")
    host.use(own)
    yield own
    host.use(before)


def example(noun: str) -> Any:
    return subjects.LoadSubject.execute(folder=f"example:toy-{noun}", class_noun=noun, **WORDS).args[0]


@pytest.fixture
def cast(plain: host.Plain) -> Any:
    return cut("rabbit", "car").args[0]


def cut(*nouns: str) -> Any:
    plugged = {f"subject{n}": example(noun) for n, noun in enumerate(nouns[1:], 2)}
    return CutOutSubjects.execute(subject=example(nouns[0]), cutouts_per_subject=1, **plugged)


def lay(cast: Any, **widgets: Any) -> Any:
    values = {
        "proposer": "rules",
        "model": "",
        "scene": "",
        "layout": "",
        "redraw": False,
        "max_tries": 8,
        "seed": 0,
    }
    return LayoutScene.execute(cast=cast, **{**values, **widgets})


COMPOSE = {"backgrounds": "drawn", "background_folder": "", "width": 64, "height": 64, "shadow": 0.3,
"harmonise": 0.0, "seed": 0}  # fmt: skip
STRATEGIES = {"background_in_caption": True, "repeat_tokens": False, "composition_token": ""}
BUILD = {"name": "s", "count": 3, "least_subjects": 2, "most_subjects": 2, "width": 64, "height": 64,
         "proposer": "rules", "captioner": "rules", "model": "", "backgrounds": "drawn", "background_folder":
         "", **STRATEGIES, "flip": 0.0, "rotate": 0.0, "shadow": 0.3, "repaint_steps": 2, "licence": "mine",
         "seed": 0}  # fmt: skip


def test_one_scene_step_by_step(cast: Any, tiny_pipeline: Path) -> None:
    with torch.inference_mode():
        layout, text, report = lay(cast).args
        assert report == "1 try (rules)" and Layout.from_json(text) == layout
        scene, image, mask = ComposeScene.execute(cast=cast, layout=layout, **COMPOSE).args
        assert image.shape == (1, 64, 64, 3) and mask.shape == (1, 64, 64) and 0 < mask.mean() < 0.7
        base = BaseModel(source=str(tiny_pipeline), device="cpu")
        painted = RepaintBackground.execute(
            scene=scene, base=base, prompt="{}", negative="", steps=2, guidance=2.0, strength=0.9,
            put_back=True, retries=0, seed=0,
        ).args  # fmt: skip
        solid = mask[0] > 0.999
        assert torch.equal(painted[1][0][solid], image[0][solid]) and not torch.equal(painted[1], image)
        caption, notes = RecaptionScene.execute(
            scene=painted[0], captioner="rules", model="", seed=0, **STRATEGIES
        ).args
        assert "<toy-rabbit> rabbit" in caption and "<toy-car> car" in caption and notes == ""


def test_an_edited_layout_is_used_as_it_is_and_composes_the_same(cast: Any) -> None:
    layout, text, _ = lay(cast).args
    record = json.loads(text)
    record["items"][0]["locked"] = True
    edited, again, report = lay(cast, layout=json.dumps(record), seed=99).args
    assert report == "as given" and edited.items[0].box == layout.items[0].box
    pictures = [
        ComposeScene.execute(cast=cast, layout=one, **COMPOSE).args[1]
        for one in (edited, lay(cast, layout=again).args[0])
    ]
    assert torch.equal(*pictures)
    redrawn = lay(cast, layout=json.dumps(record), redraw=True, scene="on the moon", seed=5).args[0]
    assert redrawn.item(edited.items[0].subject).box == edited.items[0].box and redrawn.scene == "on the moon"
    with pytest.raises(LikenessError, match="not a layout"):
        lay(cast, layout="__import__('os')")


def test_around_comfyuis_own_inpainting(cast: Any) -> None:
    scene, image, mask = ComposeScene.execute(cast=cast, layout=lay(cast).args[0], **COMPOSE).args
    start, paint, prompt, negative = PrepareRepaint.execute(
        scene=scene, prompt="a photo of {}", negative="text", mask_blur_px=5.0
    ).args
    assert torch.equal(start, image) and negative == "text" and prompt == f"a photo of {scene.layout.scene}"
    assert (paint[mask < 0.1] > 0.99).all() and paint.min() == 0
    _, finished, report = FinishRepaint.execute(
        scene=scene, painted=torch.ones(1, 32, 48, 3), put_back=True
    ).args
    solid = mask[0] > 0.999
    assert torch.equal(finished[0][solid], image[0][solid]) and (finished[0][mask[0] == 0] == 1).all()
    assert report.startswith("subject pixels kept")


def test_a_background_of_the_graph(cast: Any) -> None:
    white = torch.ones(1, 20, 90, 3)
    image = ComposeScene.execute(
        cast=cast, layout=lay(cast).args[0], **{**COMPOSE, "shadow": 0.0}, background=white
    ).args[1]
    assert (image[0, 0] == 1).all()


def test_backgrounds_and_models_stay_where_they_belong(cast: Any, plain: host.Plain) -> None:
    for folder in ("../x", "", "none"):
        with pytest.raises(LikenessError):
            backgrounds_of("folder", folder)
    for make in (proposer_of, captioner_of):
        with pytest.raises(LikenessError):
            make("local model", "../x")
        with pytest.raises(LikenessError, match=r"no language model|no captioning model"):
            make("local model", "llm/none")


def test_the_built_in_world_lays_out_describes_and_paints() -> None:
    assert isinstance(proposer_of("toybox", ""), ToyboxProposer)
    assert isinstance(captioner_of("toybox", ""), ToyboxCaptioner)
    assert isinstance(backgrounds_of("toybox", ""), ToyboxBackgrounds)


def test_without_a_chat_server_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIKENESS_CHAT_URL", raising=False)
    for make in (proposer_of, captioner_of):
        with pytest.raises(LikenessError, match="LIKENESS_CHAT_URL"):
            make("chat server", "")


def test_a_dataset_is_built_learned_from_drawn_and_scored(
    plain: host.Plain, cast: Any, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = BaseModel(source=str(tiny_pipeline), device="cpu")
    with torch.inference_mode():
        dataset, sheet, text, _path = BuildSceneDataset.execute(cast=cast, **BUILD).args
        assert len(dataset) == 3 and sheet.shape[-1] == 3 and json.loads(text)["scenes"] == 3
        assert LoadSceneDataset.execute(name="s", verify=True).args[0] == dataset
        exported = ExportSceneDataset.execute(dataset=dataset, form="huggingface", name="e").args[0]
        assert (Path(exported) / "train" / "metadata.jsonl").is_file()
        one = SubjectOfScenes.execute(dataset=dataset, name="", held_out_of=example("rabbit")).args[0]
        assert one.photos and len(one.held_out) == 3
        train_and_draw(base, dataset)


def train_and_draw(base: BaseModel, dataset: Any) -> None:
    common = {"base": base, "preset": "practical", "steps": 1, "learning_rate": 0.0, "batch_size": 1,
              "train": "preset", "augmentation": "off", "match_reference": False, "sample_every": 0,
              "seed": 0}  # fmt: skip
    concept, _done, lora, words, losses, _ = multisubject.TrainCustomDiffusion.execute(
        **common, dataset=dataset
    ).args
    assert words.splitlines() == ["<toy-rabbit> rabbit", "<toy-car> car"] and len(losses["loss"]) == 1
    assert all(key.endswith(".diff") for key in lora) and concept.kind == "delta"
    alone = [
        multisubject.TrainCustomDiffusion.execute(**common, subject=example(noun)).args[0]
        for noun in ("rabbit", "car")
    ]
    merged = multisubject.MergeConcepts.execute(base=base, concept=alone[0], concept2=alone[1]).args[0]
    assert merged.trigger == "<toy-rabbit> rabbit and <toy-car> car"
    for known in (concept, merged):
        model = generating.ApplyConcept.execute(model=base, concept=known, strength=1.0).args[0]
        _images, prompts = generating.Generate.execute(
            model=model,
            prompts="a photo of {}",
            subject_words="",
            images_per_prompt=1,
            seed=0,
            steps=1,
            guidance=1.0,
        ).args
        assert prompts == "a photo of <toy-rabbit> rabbit and <toy-car> car"
        assert multisubject._words_of(model)["car"] == "<toy-car> car"
    with pytest.raises(LikenessError, match="linked together"):
        multisubject.TrainCustomDiffusion.execute(**common, dataset=dataset, subject=example("cup"))
    with pytest.raises(LikenessError, match="Nothing to learn"):
        multisubject.TrainCustomDiffusion.execute(**common)


def test_compositions_are_scored_by_toybox(plain: host.Plain) -> None:
    summary, text = multisubject.ScoreComposition.execute(
        model=BaseModel(source="toybox"), images=torch.rand(2, 64, 64, 3), prompts="a rabbit and a car",
        judges="toybox", subject=example("rabbit"), subject2=example("car"),
    ).args  # fmt: skip
    record = json.loads(text)
    assert summary.startswith("CP-CLIP") and len(record["rows"]) == 2
    assert record["protocol"]["detector"] == "toybox-detector"


@pytest.mark.parametrize(
    ("cls", "config", "names"),
    [
        (ComposeScene, ComposeConfig(), {}),
        (RepaintBackground, RepaintConfig(), {}),
        (RecaptionScene, PromptingStrategies(), {"background_in_caption": "background"}),
        (multisubject.TrainCustomDiffusion, CustomDiffusionConfig(), {"steps": "", "learning_rate": "",
        "batch_size": "", "train": "", "sample_every": "", "token_rate": ""}), ],
)  # fmt: skip
def test_defaults_are_the_dataclasses(cls: Any, config: Any, names: dict[str, str]) -> None:
    for spec in cls.GET_SCHEMA().inputs:
        name = names.get(spec.id, spec.id)
        if name and hasattr(config, name) and spec.get_io_type() in ("INT", "FLOAT", "STRING", "BOOLEAN"):
            assert spec.default == getattr(config, name), spec.id
