"""The nodes themselves, on a tiny model: what a widget does, and what comes out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from likeness.backbones.base import BaseModel
from likeness.core.errors import LikenessError
from likeness.core.tensorfile import write_tensors
from likeness.nodes import generating, host, learning, models, scoring, subjects, training
from likeness.nodes.sockets import AppliedModel
from likeness.subjects.views import Crop
from likeness.trainers.dreambooth import DreamBoothConfig
from likeness.trainers.textual_inversion import TextualInversionConfig
from PIL import Image


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[host.Plain]:
    before = host.current
    own = host.Plain()
    own.place(output=tmp_path / "output", input=tmp_path / "input")
    host.use(own)
    yield own
    host.use(before)


def photos(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        Image.effect_noise((40 + n, 32), 80).convert("RGB").save(folder / f"{n}.png")
    return folder


WORDS = {"class_noun": "dog", "identifier": "sks", "description": ""}


def load(folder: str, **more: Any) -> Any:
    return subjects.LoadSubject.execute(folder=folder, **{**WORDS, **more}).args[0]


# --- subjects ------------------------------------------------------------------------------------------


def test_a_folder_by_full_path_and_below_the_input_folder(plain: host.Plain, tmp_path: Path) -> None:
    photos(tmp_path / "elsewhere")
    photos(plain.input / "pets" / "dog")
    assert len(load(str(tmp_path / "elsewhere")).photos) == 3
    assert load("pets/dog").name == "dog"


def test_the_examples_are_the_same_on_every_machine(plain: host.Plain) -> None:
    subject = load("example:star-turtle", class_noun="turtle")
    assert (len(subject.photos), len(subject.held_out)) == (5, 10)
    assert all("{}" in (photo.caption or "") for photo in (*subject.photos, *subject.held_out))


def test_images_of_the_graph_under_inference_mode(plain: host.Plain) -> None:
    with torch.inference_mode():
        subject = load("", images=torch.rand(2, 16, 16, 3), masks=torch.ones(2, 16, 16))
    assert len(subject.photos) == 2 and subject.photos[0].mask() is not None


@pytest.mark.parametrize(
    "folder", ["../dog", "example:../subjects", "example:", "none", "a\0b", "/none", " "]
)
def test_folders_that_are_not_there_or_not_allowed(folder: str, plain: host.Plain) -> None:
    with pytest.raises(LikenessError):
        subjects.find_photos(folder)
    assert folder == " " or subjects.LoadSubject.validate_inputs(folder, "dog") is not True


def test_a_link_out_of_the_input_folder_is_refused(plain: host.Plain, tmp_path: Path) -> None:
    photos(tmp_path / "secret")
    plain.input.mkdir(parents=True)
    (plain.input / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(LikenessError, match="leaves the folder"):
        subjects.find_photos("link")


def test_an_empty_class_noun_is_said_before_the_run(plain: host.Plain) -> None:
    assert "class_noun is empty" in str(subjects.LoadSubject.validate_inputs("", " "))


def test_the_fingerprint_follows_the_folder(plain: host.Plain, tmp_path: Path) -> None:
    folder = photos(tmp_path / "dog")

    def now() -> str:
        return subjects.LoadSubject.fingerprint_inputs(folder=str(folder), **WORDS)

    first = now()
    assert now() == first
    os.utime(folder / "0.png", ns=(1, 1))
    second = now()
    (folder / "0.txt").write_text("a photo of {}")
    assert len({first, second, now()}) == 3


def split(subject: Any, **widgets: Any) -> Any:
    values = {"method": "auto", "count": 1, "fraction": 0.34, "names": "", "seed": 0, **widgets}
    return subjects.SplitHeldOut.execute(subject=subject, **values).args[0]


def test_splits(plain: host.Plain, tmp_path: Path) -> None:
    subject = load(str(photos(tmp_path / "dog")))
    assert len(split(subject).held_out) == 1
    assert len(split(subject, method="count", count=2).held_out) == 2
    assert [p.path.name for p in split(subject, method="names", names="2.png, 0").held_out] == [
        "0.png",
        "2.png",
    ]
    with pytest.raises(LikenessError):
        split(subject, method="count", count=3)
    example = load("example:star-turtle", class_noun="turtle")
    assert split(example) is example
    assert len(split(example, method="fraction", fraction=0.2).held_out) == 3


# --- models --------------------------------------------------------------------------------------------

OPEN = {"dtype": "auto", "gradient_checkpointing": False, "channels_last": False, "compile": False,
        "offload": False}  # fmt: skip


def base_of(**widgets: Any) -> BaseModel:
    base: BaseModel = models.LoadBaseModel.execute(**{"model": "toybox", "path": "", **OPEN, **widgets}).args[
        0
    ]
    return base


def test_base_models_by_name_and_by_path(plain: host.Plain, tmp_path: Path) -> None:
    assert base_of() == BaseModel(source="toybox")
    (plain.models / "checkpoints" / "sub").mkdir(parents=True)
    write_tensors(plain.models / "checkpoints" / "sub" / "x.safetensors", {"a": torch.zeros(1)}, {})
    (plain.models / "diffusers" / "sd").mkdir(parents=True)
    (plain.models / "diffusers" / "sd" / "model_index.json").write_text("{}")
    options = models.LoadBaseModel.GET_SCHEMA().inputs[0].options
    assert options == ["toybox", "checkpoints/sub/x.safetensors", "diffusers/sd"]
    assert base_of(model=options[1]).source == str(plain.models / options[1])
    assert base_of(model=options[2]).source == str(plain.models / options[2])
    folder = plain.models / "diffusers" / "sd"
    assert base_of(path=f" {folder} ", dtype="fp32") == BaseModel(source=str(folder), dtype="fp32")
    with pytest.raises(LikenessError, match="no longer there"):
        base_of(model="checkpoints/gone.safetensors")
    validate = models.LoadBaseModel.validate_inputs
    assert validate("toybox", str(tmp_path / "none"), "auto") is not True
    assert validate("toybox", "", "fp8") is not True and validate("gone", "", "auto") is not True
    assert validate("toybox", "", "auto") is True and validate(None, None, None) is True


# --- settings ------------------------------------------------------------------------------------------


def test_an_untouched_trainer_is_the_preset(tiny_pipeline: Path, tiny_sdxl: Path) -> None:
    untouched = {"steps": 0, "learning_rate": 0.0, "batch_size": 0, "sample_every": 0}
    dreambooth = {**untouched, "train": "preset", "rank": 0, "conv": False, "text_encoder": False}
    toybox, other = BaseModel(), BaseModel(source=str(tiny_pipeline))
    xl = BaseModel(source=str(tiny_sdxl))
    for kind, widgets in ((TextualInversionConfig, untouched), (DreamBoothConfig, dreambooth)):
        config = learning.config_of
        assert config(kind, "paper", other, widgets) == kind.paper()
        assert config(kind, "practical", toybox, widgets) == kind.practical("toybox")
        assert config(kind, "practical", other, widgets) == kind.practical("sd1")
        assert config(kind, "practical", xl, widgets) == kind.practical("sdxl") != kind.practical("sd1")


def test_a_turned_widget_counts_and_alpha_follows_rank() -> None:
    widgets = {"steps": 7, "learning_rate": 0.5, "rank": 16, "train": "lora", "conv": True, "sample_every": 9}
    config = learning.config_of(DreamBoothConfig, "paper", BaseModel(), widgets)
    assert (config.steps, config.learning_rate, config.rank, config.alpha) == (7, 0.5, 16, 16.0)
    assert (config.train, config.conv, config.sample_every) == ("lora", True, 9)
    assert (config.crop, config.flip) == (DreamBoothConfig.paper().crop, False)
    seen = learning.config_of(DreamBoothConfig, "paper", BaseModel(), {"crop": "bucket", "flip": True})
    assert (seen.crop, seen.flip) == ("bucket", True)
    assert tuple(learning.CROPS) == get_args(Crop)


# --- training, drawing, saving -------------------------------------------------------------------------


def test_a_subject_is_learned_drawn_and_saved(plain: host.Plain, tmp_path: Path, tiny_pipeline: Path) -> None:
    """Under inference mode, as ComfyUI runs it."""
    with torch.inference_mode():
        learn_draw_and_save(plain, load(str(photos(tmp_path / "dog"))), base_of(path=str(tiny_pipeline)))


def learn_draw_and_save(plain: host.Plain, subject: Any, base: BaseModel) -> None:
    common = {"base": base, "subject": subject, "preset": "practical", "steps": 2, "learning_rate": 0.0,
              "batch_size": 1, "sample_every": 2, "seed": 0}  # fmt: skip
    lora_widgets = {"train": "preset", "rank": 2, "conv": False, "text_encoder": False}
    trained = training.TrainDreamBooth.execute(**common, **lora_widgets)
    concept, run, lora, losses, samples = trained.args
    assert concept.kind == "lora" and not run.reused and concept.trigger == "sks dog"
    assert all(key.startswith("lora_unet_") for key in lora)
    assert len(losses["loss"]) == 2 and samples.shape == (4, 64, 64, 3)
    assert len(trained.ui["images"]) == 4 and trained.ui["likeness"][0]["path"] == str(concept.path)
    again = training.TrainDreamBooth.execute(**common, **lora_widgets)
    assert again.args[1].reused and again.args[3] == losses and torch.equal(again.args[4], samples)

    word = training.TrainTextualInversion.execute(**common, num_vectors=2, initial_words="").args[0]
    assert (word.kind, word.trigger) == ("embedding", "<dog>")

    model = generating.ApplyConcept.execute(model=base, concept=concept, strength=0.5).args[0]
    model = generating.ApplyConcept.execute(model=model, concept=word, strength=1.0).args[0]
    assert isinstance(model, AppliedModel) and [s for _, s in model.concepts] == [0.5, 1.0]
    draw = {"subject_words": "", "images_per_prompt": 2, "seed": 5, "steps": 2, "guidance": 3.0}
    images, prompts = generating.Generate.execute(
        model=model, prompts="a photo of {}\n\n {} here ", **draw
    ).args
    assert images.shape == (4, 64, 64, 3) and 0 <= float(images.min()) <= float(images.max()) <= 1
    assert prompts.splitlines() == ["a photo of <dog>"] * 2 + ["<dog> here"] * 2
    alone = generating.Generate.execute(
        model=model, prompts="{} here", **{**draw, "images_per_prompt": 1}
    ).args[0]
    assert torch.allclose(alone[0], images[2], atol=1e-4)  # a picture does not depend on the others
    with pytest.raises(LikenessError, match="nothing was said of what it stands for"):
        generating.Generate.execute(model=base, prompts="a photo of {}", **draw)

    saved = generating.SaveConcept.execute(concept=concept, name="sub/my dog")
    assert saved.args[1] == str(plain.models / "loras" / "likeness" / "sub" / "my dog.safetensors")
    assert generating.SaveConcept.execute(concept=concept, name="sub/my dog").args[1] == saved.args[1]
    assert (
        generating.SaveConcept.execute(concept=word, name="dog").args[0].path.parent
        == plain.models / "embeddings"
    )
    listed = generating.LoadConcept.GET_SCHEMA().inputs[0].options
    assert listed == ["loras/likeness/sub/my dog.safetensors", "embeddings/dog.safetensors"]
    loaded, trigger, unmatched = generating.LoadConcept.execute(file=listed[0]).args
    assert (loaded.sha256, trigger, unmatched) == (concept.sha256, "sks dog", "")
    for name in ("../x", "/x", "", "a/../../x"):
        with pytest.raises(LikenessError):
            generating.SaveConcept.execute(concept=concept, name=name)

    page = Path(scoring.Report.execute(title="A <dog>", name="dog", subject=subject, run=run).args[0])
    assert page == plain.output / "likeness" / "reports" / "dog.html" and "A &lt;dog&gt;" in page.read_text(
        "utf-8"
    )
    with pytest.raises(LikenessError, match="report name"):
        scoring.Report.execute(title="x", name="../x", subject=subject)


def test_a_report_leaves_its_scorecards_as_files(plain: host.Plain) -> None:
    from likeness.scoring.scorecard import Row, Scorecard

    row = Row(subject="dog", prompt="a dog", text="a dog", scores={"clip_t": 0.3, "clip_i": 0.8, "dino": 0.6})
    card, other = (Scorecard(label=label, rows=(row,), protocol={}) for label in ("rank 4/8", ""))
    result = scoring.Report.execute(title="x", name="dog", scorecard=card, scorecard2=other)
    folder = plain.output / "likeness" / "reports" / "dog scores"
    stems = ("1 rank 4_8", "2 scorecard")
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{stem}.{suffix}" for stem in stems for suffix in ("csv", "json", "png")
    ]
    assert Scorecard.from_json((folder / "1 rank 4_8.json").read_text("utf-8")) == card
    assert [one["kind"] for one in result.ui["likeness"]] == ["report", "scorecard", "scorecard"]


def test_another_file_of_the_name_is_kept(plain: host.Plain, tmp_path: Path) -> None:
    from likeness.concepts.concept import Artifact
    from likeness.concepts.copying import copy_concept
    from likeness.concepts.saving import save_concept

    def concept(value: float) -> Any:
        artifact = Artifact(
            kind="embedding", tensors={"clip_l": torch.full((1, 8), value)}, trigger="<x>", class_noun="dog",
            metadata={},
        )  # fmt: skip
        return save_concept(artifact, tmp_path / str(value), "x", family="toybox", base_hash="")

    names = [
        copy_concept(concept(value), tmp_path / "to", "x").path.stem for value in (1.0, 2.0, 1.0, 3.0, 2.0)
    ]
    assert names == ["x", "x-2", "x", "x-3", "x-2"]


def test_pictures_and_prompts_that_do_not_fit() -> None:
    class Dog:
        name = "dog"

    images = torch.rand(4, 8, 8, 3)
    rows = scoring._pictures(images, "a\nb\n", Dog())  # type: ignore[arg-type]
    assert [row.prompt for row in rows] == ["a", "a", "b", "b"]
    assert torch.equal(rows[2].image.permute(1, 2, 0), images[2])  # type: ignore[union-attr]
    for prompts in ("", "a\nb\nc"):
        with pytest.raises(LikenessError, match="4 pictures"):
            scoring._pictures(images, prompts, Dog())  # type: ignore[arg-type]
