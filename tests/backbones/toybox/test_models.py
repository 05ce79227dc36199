"""The shipped models keep their interfaces. Loudly skipped while a part has no weights."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from likeness.backbones.toybox import models, nets, render, world
from likeness.backbones.toybox.nets import overlap
from likeness.backbones.toybox.training import data
from likeness.core.errors import LikenessError
from likeness.scoring.composition import ToyboxDetector


def shipped(part: str) -> pytest.MarkDecorator:
    there = any((models.weights_dir() / part).glob("*.safetensors"))
    return pytest.mark.skipif(not there, reason=f"Toybox ships no weights for {part} yet")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return data.to_tensor(data.held_out(3)[1])


@shipped("unet")
def test_the_weights_are_a_diffusers_pipeline_with_32_groups() -> None:
    folder = models.weights_dir()
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
    unet, vae = (json.loads((folder / part / "config.json").read_text()) for part in ("unet", "vae"))
    assert unet["norm_num_groups"] == vae["norm_num_groups"] == 32
    assert unet["in_channels"] == unet["out_channels"] == vae["latent_channels"]
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 36e6


@shipped("clip")
def test_clip_gives_unit_rows_and_knows_its_text_tower(images: torch.Tensor) -> None:
    clip = models.load_clip()
    seen, said = clip.encode_image(images), clip.encode_text(["a red fish", "a cat on the beach"])
    assert seen.shape == (3, 192) and said.shape == (2, 192)
    assert torch.allclose(seen.norm(dim=1), torch.ones(3), atol=1e-5)


@shipped("identity")
def test_identity_is_nearer_for_the_same_instance(images: torch.Tensor) -> None:
    encoder = models.load_identity()
    z = [encoder.encode_image(data.to_tensor(_draw(world.subject("cat", i)))) for i in range(4)]
    assert z[0].shape == (4, 128)
    same = torch.stack([(a @ a.T)[0, 1:].mean() for a in z]).mean()
    other = torch.stack([(z[i] @ z[j].T).mean() for i in range(4) for j in range(i)]).mean()
    assert same > other + 0.2
    assert torch.allclose(encoder.encode_image(torch.rand(1, 3, 96, 80)).norm(), torch.tensor(1.0))


@shipped("identity")
def test_identity_sees_the_place_less_than_the_subject() -> None:
    encoder, pictures = models.load_identity(), world.subject_pictures(world.subject("cat", 1), 8, 0)
    elsewhere = [
        replace(p, scene="space" if p.scene != "space" else "beach", light=p.light) for p in pictures
    ]
    others = [replace(p, things=(replace(p.things[0], look=world.Look(colour="red")),)) for p in pictures]
    z, moved, other = (
        encoder.encode_image(data.to_tensor(np.stack([render.image(p) for p in some])))
        for some in (pictures, elsewhere, others)
    )
    assert (z * other).sum(1).mean() + 0.1 < (z * moved).sum(1).mean() < 0.9


def _draw(instance: world.Instance) -> object:
    return np.stack([render.image(p) for p in world.subject_pictures(instance, 4, 0)])


@shipped("detector")
def test_the_detector_gives_boxes_in_pixels(images: torch.Tensor) -> None:
    for box, score in models.load_detector().detect(images[0], "cat", least=0.0)[:3]:
        assert 0 <= box[0] <= box[2] <= 64 and 0 <= box[1] <= box[3] <= 64 and 0 <= score <= 1


@shipped("detector")
def test_the_detector_outlines_what_stands_in_a_picture() -> None:
    pictures, drawn = data.held_out(16, start=400)
    told = torch.stack([models.load_detector().outline(x) for x in data.to_tensor(drawn)]) >= 0.5
    true = torch.stack([torch.from_numpy(render.render(p).masks.any(axis=0)) for p in pictures])
    assert (told & true).sum() / (told | true).sum() > 0.7


@shipped("detector")
def test_the_detector_finds_each_of_several_things() -> None:
    """A composed scene has more things than other pictures of Toybox."""
    crowds = [p for p in map(world.crowd, range(10**6, 10**6 + 120)) if p.things[0].half_px > 12]
    detector, there, found = models.load_detector(), 0, 0
    for picture, drawn in zip(crowds, map(render.render, crowds), strict=True):
        image = data.to_tensor(drawn.image[None])[0]
        for thing, box in zip(picture.things, drawn.boxes, strict=True):
            seen = [other for other, _ in detector.detect(image, thing.noun, least=ToyboxDetector.least)]
            there, found = there + 1, found + any(overlap(tuple(box), other) > 0.5 for other in seen)
    assert found / there > 0.93


@shipped("judge")
def test_the_judge_reads_scenes(images: torch.Tensor) -> None:
    pictures, drawn = data.held_out(32, start=300)
    read = models.load_judge().facts(data.to_tensor(drawn))
    assert sum(facts["scene"] == p.scene for facts, p in zip(read, pictures, strict=True)) >= 29


@shipped("preference")
def test_preference_scores_each_pair(images: torch.Tensor) -> None:
    assert models.load_preference().score(images, ["a cat"] * 3).shape == (3,)


def test_no_config_names_the_machine_that_trained_it() -> None:
    configs = list(models.weights_dir().rglob("*.json"))
    assert configs and not [path for path in configs if '"_name_or_path": "/' in path.read_text("utf-8")]


def test_missing_weights_are_a_clear_error(tmp_path: object) -> None:
    with pytest.raises(LikenessError, match="identity"):
        models.load_identity(tmp_path)  # type: ignore[arg-type]


def test_the_nets_are_small() -> None:
    assert sum(p.numel() for p in nets.Identity().parameters()) < 2.5e6
