"""Attractor, Train NeTI, View Attractor and Import NeTI Mapper at work, in inference mode as in ComfyUI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from likeness.backbones.base import BaseModel
from likeness.core.errors import LikenessError
from likeness.nodes import attractor, generating, host, training
from likeness.subjects import from_images

COMMON = {
    "preset": "practical",
    "steps": 2,
    "learning_rate": 0.0,
    "batch_size": 2,
    "sample_every": 0,
    "seed": 0,
}
DRAW = {"seed": 5, "steps": 2, "guidance": 3.0}


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[host.Plain]:
    before = host.current
    own = host.Plain()
    own.place(output=tmp_path / "output", input=tmp_path / "input")
    host.use(own)
    yield own
    host.use(before)


def settings(**changes: Any) -> Any:
    widgets = {spec.id: spec.default for spec in attractor.Attractor.GET_SCHEMA().inputs}
    return attractor.Attractor.execute(**{**widgets, **changes})


def test_the_settings_draw_their_curve(plain: host.Plain) -> None:
    out = settings(schedule="linear", initial_words=" ")
    spec, curve = out.args
    assert (spec.schedule, spec.initial_words) == ("linear", "background")
    assert curve.shape == (1, 256, 384, 3) and float(curve.std()) > 0.01
    picture = out.ui["images"][0]
    assert (plain.output / picture["subfolder"] / picture["filename"]).is_file()


def test_a_word_and_its_attractor_are_learned_seen_and_saved(
    plain: host.Plain, tmp_path: Path, tiny_pipeline: Path
) -> None:
    with torch.inference_mode():
        learn_view_and_save(plain, tmp_path, BaseModel(source=str(tiny_pipeline), device="cpu"))


def learn_view_and_save(plain: host.Plain, tmp_path: Path, base: BaseModel) -> None:
    masks = torch.zeros(2, 32, 32)
    masks[:, 8:24, 8:24] = 1.0
    with host.training_mode():
        photos = torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(0))
        subject = from_images(photos, tmp_path / "photos", masks=masks, class_noun="dog", name="rex")
    spec = settings().args[0]
    common = {**COMMON, "base": base, "subject": subject, "initial_words": ""}
    ti = training.TrainTextualInversion.execute(**common, num_vectors=1, attractor=spec)
    seen = attractor.ViewAttractor.execute(base=base, run=ti.args[1], pictures=2, **DRAW)
    theirs, ours, sheet = seen.args
    assert theirs.shape == ours.shape == (2, 64, 64, 3) and sheet.shape == (1, 128, 128, 3)

    neti = attractor.TrainNeTI.execute(**common, mapper="preset", nested_dropout=0.0, attractor=spec)
    concept, run, losses, _ = neti.args
    assert (concept.kind, concept.trigger, len(losses["loss"])) == ("neti", "<rex>", 2)
    assert len(attractor._attractors(run)) == 1
    assert (
        attractor.TrainNeTI.execute(**common, mapper="preset", nested_dropout=0.0, attractor=spec)
        .args[1]
        .reused
    )

    saved = generating.SaveConcept.execute(concept=concept, name="rex")
    assert saved.args[1] == str(plain.models / "neti" / "rex.safetensors")
    loaded = generating.LoadConcept.execute(file="neti/rex.safetensors").args[0]
    assert loaded.sha256 == concept.sha256
    model = generating.ApplyConcept.execute(model=base, concept=loaded, strength=1.0).args[0]
    images, prompts = generating.Generate.execute(
        model=model, prompts="a photo of {}", subject_words="", images_per_prompt=1, **DRAW
    ).args
    assert images.shape == (1, 64, 64, 3) and prompts == "a photo of <rex>"


def test_a_run_without_an_attractor_is_said(plain: host.Plain, tmp_path: Path) -> None:
    class Run:
        run_folder = tmp_path / "dog"

        class concept:  # noqa: N801
            path = tmp_path / "dog.safetensors"

    with pytest.raises(LikenessError, match="no attractor"):
        attractor._attractors(Run())  # type: ignore[arg-type]


def test_released_mappers_are_listed_and_asked_for(plain: host.Plain) -> None:
    (plain.models / "neti").mkdir(parents=True)
    (plain.models / "neti" / "mapper-steps-500.pt").write_bytes(b"x")
    node = attractor.ImportNeTI
    assert node.define_schema().inputs[0].options == ["mapper-steps-500.pt"]
    with pytest.raises(LikenessError, match="can carry programs"):
        node.execute(file="mapper-steps-500.pt", allow_pickle_format=False)
    with pytest.raises(LikenessError, match="no mapper"):
        node.execute(file="mapper-steps-500.pt", allow_pickle_format=True)
    with pytest.raises(LikenessError):
        node.execute(file="../../x.pt", allow_pickle_format=True)
