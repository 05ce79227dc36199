"""Custom Diffusion: what trains and what does not, the loss against a plain transcription, merging."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from likeness.backbones import open_backbone
from likeness.concepts.applying import apply_concepts, fit
from likeness.concepts.extract import extract_lora
from likeness.concepts.loading import load_tensors
from likeness.concepts.saving import save_concept, to_lora_model
from likeness.core.errors import LikenessError
from likeness.core.randomness import generator
from likeness.trainers.custom_diffusion import (
    CustomDiffusion,
    CustomDiffusionConfig,
    Word,
    augmented,
    joint_subject,
    masked_loss,
    train_custom_diffusion,
)
from likeness.trainers.merging import merge_concepts, merged_weight
from likeness.trainers.prior import PriorPreservation


def drained(events):
    return list(events)[-1]


def method_of(base, subject, tmp_path, *, prior=None, **changes) -> CustomDiffusion:
    config = CustomDiffusionConfig(**{"batch_size": 2, "augment": False, "flip": False, **changes})
    method = CustomDiffusion(
        open_backbone(base), subject, config, seed=3, prior=prior, base=base, runs_root=Path(tmp_path)
    )
    for _ in method.prepare():
        pass
    return method


# --- the loss -----------------------------------------------------------------------------------------


def test_masked_loss_by_hand():
    pred, target = torch.zeros(2, 4, 2, 2), torch.zeros(2, 4, 2, 2)
    pred[0, :, 0, 0], pred[0, :, 1, 1], pred[1] = 2.0, 100.0, 1.0
    mask = torch.ones(2, 1, 2, 2)
    mask[0, 0, 1, 1] = 0
    assert masked_loss(pred, target, mask).item() == pytest.approx((4 / 3 + 1) / 2)
    assert masked_loss(pred, target, mask, match_reference=True).item() == pytest.approx(4 * (4 / 3 + 1) / 2)


def test_an_empty_mask_is_no_division_by_zero():
    assert masked_loss(torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2), torch.zeros(1, 1, 2, 2)).item() == 0


@pytest.mark.parametrize("with_prior", [False, True])
def test_loss_and_gradients_equal_a_plain_transcription(base, subject, tmp_path, with_prior):
    """Weights swapped in by name, the first token's keys and values detached in a copied attention."""
    prior = PriorPreservation(num_images=2, steps=1, batch_size=2, weight=0.7) if with_prior else None
    method = method_of(base, subject, tmp_path, prior=prior)
    try:
        batch = method.batch(0)
        for p in method.parameters().values():
            p.data += 0.01 * torch.randn(p.shape, generator=generator(0, "move", str(tuple(p.shape))))
        ours = method.loss(batch).total
        ours.backward()
        gradients = {name: p.grad.clone() for name, p in method.parameters().items()}
        values = {name: p.detach().clone() for name, p in method.parameters().items()}
    finally:
        method.close()
    theirs, expected = transcription(method, batch, values, prior)
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)
        assert gradient.any(), name


def transcription(method, batch, values, prior):
    """The authors' training step in one piece: concatenate, forward, chunk, two means."""
    model = method.backbone
    leaves = {name: v.clone().requires_grad_(True) for name, v in values.items()}
    unet = model.module("unet")
    rows = {n.removeprefix("rows."): leaf for n, leaf in leaves.items() if n.startswith("rows.")}
    context = model.encode_prompts(batch.prompts, embeddings=rows).context
    noisy = model.add_noise(batch.rows.latents_BCHW, batch.rows.noise_BCHW, batch.rows.t_B)
    saved = {}
    for name, leaf in leaves.items():
        if name.startswith("unet."):
            layer = unet.get_submodule(name.removeprefix("unet.").removesuffix(".weight"))
            saved[layer] = layer.forward
            layer.forward = with_first_detached(leaf)
    try:
        pred = unet(noisy, batch.rows.t_B, context, return_dict=False)[0]
    finally:
        for layer in saved:
            del layer.forward
    error = F.mse_loss(pred, batch.rows.noise_BCHW, reduction="none")
    num = batch.num_instance
    loss = error[:num].mean([1, 2, 3]).mean()
    if prior is not None:
        loss = loss + prior.weight * error[num:].mean()
    loss.backward()
    return loss, {name: leaf.grad for name, leaf in leaves.items()}


def with_first_detached(weight):
    def forward(x):
        out = x @ weight.T
        keep = torch.ones_like(out)
        keep[:, :1] = 0
        return out * keep + (out * (1 - keep)).detach()

    return forward


def test_only_keys_values_and_rows_change(base, subject, tmp_path):
    method = method_of(base, subject, tmp_path)
    try:
        names = set(method.parameters())
        assert {n for n in names if n.startswith("rows.")} == {"rows.<finn>"}
        assert all(
            n.startswith("rows.") or n.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for n in names
        )
        unet = open_backbone(base).module("unet")
        assert len(names) - 1 == sum(n.endswith("attn2") for n, _ in unet.named_modules()) * 2
        method.loss(method.batch(0)).total.backward()
        parts = (unet, open_backbone(base).module("text_encoder"))
        assert all(p.grad is None for part in parts for p in part.parameters())
    finally:
        method.close()


def test_the_first_token_does_not_learn(base, subject, tmp_path):
    """A context of nothing but first tokens gives no gradient to keys and values."""
    method = method_of(base, subject, tmp_path)
    try:
        layer = next(iter(method.layers.values()))
        plain = torch.nn.Linear(1, 1, bias=False)
        for num, learns in ((1, False), (2, True)):
            x = torch.randn(2, num, layer.weight.shape[1])
            layer.weight.grad = None
            layer(plain, (x,), x).sum().backward()
            assert bool(layer.weight.grad.any()) is learns
    finally:
        method.close()


# --- the switch, the words, the augmentation ----------------------------------------------------------


def two_subjects(subject):
    return [
        replace(subject, name="ann"),
        replace(subject, name="bob", class_noun="dog", photos=subject.photos[:1]),
    ]


def test_joint_training_and_the_reference_bug(base, subject, tmp_path):
    material, words = joint_subject(two_subjects(subject))
    assert [w.words for w in words] == ["<ann> fish", "<bob> dog"] and len(material.photos) == 4
    for bug, last in ((False, True), (True, False)):
        method = method_of(base, material, tmp_path, words=words, match_reference=bug, batch_size=4)
        try:
            prompts = method.batch(0).prompts
            assert all(("<ann> fish" in p) != ("<bob> dog" in p) for p in prompts)
            method.loss(method.batch(0)).total.backward()
            assert method.rows["<ann>"].grad.any()
            assert bool(method.rows["<bob>"].grad.any()) is last
        finally:
            method.close()


def test_words_that_clash_and_a_monitor_of_two(base, subject, tmp_path):
    with pytest.raises(LikenessError, match="words"):
        CustomDiffusionConfig(words=(Word(token="<a>", noun="x"), Word(token="<a>", noun="y")))
    with pytest.raises(LikenessError, match="cannot be trained together"):
        joint_subject([subject, subject])
    _, words = joint_subject(two_subjects(subject))
    with pytest.raises(LikenessError, match="judges one subject"):
        train_custom_diffusion(
            base, subject, CustomDiffusionConfig(words=words), runs_root=tmp_path, monitor=object()
        )


def test_augmentation_keeps_its_promises():
    image = torch.rand(3, 64, 64) * 0.5 + 0.25
    seen = set()
    for n in range(60):
        view, mask, words = augmented(image, generator(n, "a"), cell=8)
        assert view.shape == image.shape and mask.shape == (1, 8, 8) and mask.sum() >= 1
        if words.startswith(("a far", "very")):
            inside = F.interpolate(mask[None], scale_factor=8)[0].bool().expand_as(view)
            assert (view == 0).any() and (view[inside] != 0).all()
            seen.add("small")
        else:
            assert mask.all() and (view != 0).all()
            seen.add("large" if words else "plain")
    assert seen == {"small", "large", "plain"}


# --- files and merging --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(base, subject, tmp_path_factory):
    """Two subjects, each learned alone for two steps."""
    root = tmp_path_factory.mktemp("custom")
    config = CustomDiffusionConfig(steps=2, batch_size=1, learning_rate=1e-2, augment=False, flip=False)
    return [
        drained(train_custom_diffusion(base, one, config, runs_root=root)).concept
        for one in two_subjects(subject)
    ]


def test_one_file_holds_weights_and_words(base, trained, tmp_path):
    concept = trained[0]
    backbone = open_backbone(base)
    one = fit(concept, backbone)
    assert set(one.embeddings) == {"<ann>"} and one.deltas and not one.unmatched
    assert concept.metadata["words"] == [["<ann>", "fish"]]
    with apply_concepts(backbone, [(concept, 1.0), (trained[1], 0.5)]) as model:
        assert model.encode_prompts(["a <ann> fish and a <bob> dog"]).context.shape[1] == 77
    assert all(key.endswith(".diff") for key in to_lora_model(concept))


def test_as_a_low_rank_lora_with_its_words(base, trained, tmp_path):
    from likeness.concepts.concept import Artifact

    concept = trained[0]
    delta = Artifact(
        kind="delta", tensors=load_tensors(concept), trigger=concept.trigger, class_noun="fish", metadata={}
    )
    lora = save_concept(extract_lora(delta, rank=4), tmp_path, "small", family="sd1", base_hash="")
    tensors = load_tensors(lora)
    assert lora.kind == "lora" and "embedding.<ann>" in tensors
    assert torch.equal(tensors["embedding.<ann>"], delta.tensors["embedding.<ann>"])


def test_merging_reproduces_each_concepts_targets(base, trained):
    backbone = open_backbone(base)
    merged = merge_concepts(backbone, trained)
    base_weights = dict(backbone.module("unet").named_parameters())
    for concept, noun in zip(trained, ("fish", "dog"), strict=True):
        own = fit(concept, backbone)
        token = next(iter(own.embeddings))
        with torch.no_grad():
            context = backbone.encode_prompts(
                [f"photo of a {token} {noun}"], embeddings=own.embeddings
            ).context
        keys = context[0, 4:6]
        for layer, delta in own.deltas.items():
            weight = base_weights[layer.removeprefix("unet.")].detach()
            torch.testing.assert_close(
                keys @ (weight + merged.tensors[layer]).T, keys @ (weight + delta).T, rtol=1e-4, atol=1e-4
            )
    assert merged.trigger == "<ann> fish and <bob> dog"


def test_merging_moves_the_rest_as_little_as_can_be():
    w, k, c = (
        torch.randn(*s, generator=generator(1, "m", n)) for n, s in enumerate(((6, 8), (2, 8), (40, 8)))
    )
    v = torch.randn(2, 6, generator=generator(1, "v"))
    ours = merged_weight(w, k, v, c)
    torch.testing.assert_close(k @ ours.T, v, rtol=1e-4, atol=1e-4)
    other = w + torch.linalg.pinv(k).matmul(v - k @ w.T).T  # also meets the constraints
    torch.testing.assert_close(k @ other.T, v, rtol=1e-4, atol=1e-4)
    assert ((ours - w) @ c.T).square().sum() < ((other - w) @ c.T).square().sum()


def test_what_cannot_be_merged(base, trained):
    backbone = open_backbone(base)
    with pytest.raises(LikenessError, match="two or more"):
        merge_concepts(backbone, trained[:1])
    with pytest.raises(LikenessError, match="same token"):
        merge_concepts(backbone, [trained[0], trained[0]])
