"""DreamBooth's own: instance and class rows in one forward, prompts, what trains."""

from dataclasses import replace

import pytest
import torch
from likeness.backbones import open_backbone
from likeness.core.errors import LikenessError
from likeness.subjects import from_images
from likeness.trainers.dreambooth import DreamBooth, DreamBoothConfig
from likeness.trainers.objectives import min_snr_weight, squared_error
from likeness.trainers.prior import PriorPreservation

PRIOR = PriorPreservation(num_images=4, steps=2, batch_size=4, weight=0.5)


@pytest.fixture
def build(base, subject, tmp_path):
    """``build(prior=..., **settings)``: a prepared method, given back at the end."""
    made = []

    def make(prior=PRIOR, **changes):
        config = DreamBoothConfig(**{"batch_size": 2, "crop": "center", **changes})
        method = DreamBooth(
            open_backbone(base), subject, config, seed=0, prior=prior, base=base, runs_root=tmp_path
        )
        made.append(method)
        list(method.prepare())
        return method

    yield make
    for method in made:
        method.close()


def test_instance_and_class_rows_share_a_forward(build, monkeypatch):
    method = build()
    batch = method.batch(0)
    assert batch.is_prior_B.tolist() == [False, False, True, True]
    assert batch.rows.latents_BCHW.shape[0] == batch.text.context.shape[0] == 4
    calls = []
    predict = type(method.backbone).predict
    monkeypatch.setattr(type(method.backbone), "predict", lambda *a: calls.append(len(a[1])) or predict(*a))
    method.loss(batch)
    assert calls == [4]


def test_in_a_bucket_class_rows_have_the_photos_size(base, subject, tmp_path):
    wide = from_images(torch.rand(1, 32, 48, 3), tmp_path / "wide", class_noun="fish").photos
    mixed = replace(subject, photos=(*subject.photos, *wide))
    config = DreamBoothConfig(batch_size=2, crop="bucket")
    method = DreamBooth(
        open_backbone(base), mixed, config, seed=0, prior=PRIOR, base=base, runs_root=tmp_path
    )
    try:
        list(method.prepare())
        assert len(method.cache) == 4 + 2 * 4  # the class images, square and wide
        shapes = set()
        for index in range(4):
            batch = method.batch(index)
            assert batch.is_prior_B.tolist() == [False, False, True, True]
            assert torch.isfinite(method.loss(batch).total)
            shapes.add(tuple(batch.rows.latents_BCHW.shape[2:]))
        assert len(shapes) == 2
    finally:
        method.close()


def test_each_row_has_its_own_prompt(build, subject):
    method = build()
    captions = [photo.caption.replace("{}", "sks fish") for photo in subject.photos]
    assert method.prompts == captions + ["a photo of a fish"] * 4
    states = open_backbone(method.base).encode_prompts(["a photo of a fish"]).context
    torch.testing.assert_close(method.batch(0).text.context[3:], states)
    assert build(use_captions=False).prompts[:3] == ["a photo of sks fish"] * 3


def test_the_loss_is_the_paper_s(build):
    method = build(min_snr_gamma=5.0)
    batch = method.batch(0)
    model, rows = method.backbone, batch.rows
    loss = method.loss(batch)
    with torch.no_grad():
        noisy = model.add_noise(rows.latents_BCHW, rows.noise_BCHW, rows.t_B)
        error_B = squared_error(model.predict(noisy, rows.t_B, batch.text), rows.noise_BCHW)
        weight_B = min_snr_weight(model.snr(rows.t_B), 5.0, "epsilon")
    expected = (weight_B * error_B)[:2].mean() + 0.5 * error_B[2:].mean()
    torch.testing.assert_close(loss.total.detach(), expected)


def test_without_prior_there_are_instance_rows_only(build):
    method = build(prior=None)
    assert not method.batch(0).is_prior_B.any()
    assert set(method.loss(method.batch(0)).terms) == {"instance"}


def test_class_images_come_from_the_untouched_model(build, tmp_path):
    """They are drawn before anything is put on the model, and shared by runs of every seed."""
    build()
    (folder,) = (tmp_path / "class-images").iterdir()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    build(rank=2)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_text_encoder_that_learns_is_asked_every_step(build):
    method = build(text_encoder=True)
    assert any(name.startswith("text_encoder.") for name in method.parameters())
    assert method.batch(0).text == [method.prompts[view] for view in method.batch(0).rows.views_B]
    method.loss(method.batch(0)).total.backward()
    grads = [p.grad for name, p in method.parameters().items() if name.startswith("text_encoder.")]
    assert any(grad is not None and grad.any() for grad in grads)


def test_training_all_weights_leaves_the_shared_model_alone(build, base):
    method = build(train="unet")
    shared = dict(open_backbone(base).module("unet").named_parameters())
    trained = method.parameters()
    assert {name.removeprefix("unet.") for name in trained} == set(shared)
    with torch.no_grad():
        for p in trained.values():
            p.add_(1.0)
    deltas = method.deltas()
    assert all(torch.allclose(delta, torch.ones_like(delta), atol=1e-5) for delta in deltas.values())


def test_presets_and_impossible_settings():
    paper = DreamBoothConfig.paper()
    assert (paper.train, paper.learning_rate, paper.batch_size) == ("unet", 5e-6, 1)
    assert DreamBoothConfig.practical("sd1").learning_rate == 1e-4
    for change in (
        {"train": "vae"}, {"rank": 0}, {"alpha": 0.0}, {"min_snr_gamma": -1.0}, {"prompt": "a photo"},
        {"train": "unet", "text_encoder": True},
    ):  # fmt: skip
        with pytest.raises(LikenessError, match=next(iter(change))):
            DreamBoothConfig(**change)
