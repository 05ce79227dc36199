"""The attractor's own: pools, masks, schedules, and equation 6 against a plain reading of it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from likeness.backbones import open_backbone
from likeness.core.errors import LikenessError
from likeness.subjects import from_images
from likeness.trainers.attractor import (
    SCENE_TEMPLATES,
    SCHEDULES,
    SUBJECT_TEMPLATES,
    Attractor,
    attractor_words,
)
from likeness.trainers.attractor_picture import save_curve
from likeness.trainers.neti import NeTI, NeTIConfig, NeTIPlus
from likeness.trainers.textual_inversion import TextualInversionConfig, TextualInversionPlus

TAU = 0.07


def plus(base, subject, *, config=None, **settings):
    config = config or TextualInversionConfig(batch_size=3, steps=10, attractor=Attractor(**settings))
    method = NeTIPlus if isinstance(config, NeTIConfig) else TextualInversionPlus
    built = method(open_backbone(base), subject, config, seed=0)
    list(built.prepare())
    return built


# --- settings --------------------------------------------------------------------------------------------


@given(st.sampled_from(sorted(SCHEDULES)), st.floats(0, 1), st.floats(0, 1))
def test_every_schedule_stays_in_its_range_and_never_falls(name, p, q):
    low, high = (SCHEDULES[name](x) for x in sorted((p, q)))
    assert -1e-12 <= low <= high + 1e-12 <= 1 + 2e-12


def test_schedules_by_hand():
    at = {name: [SCHEDULES[name](p) for p in (0.0, 0.5, 1.0)] for name in SCHEDULES}
    assert at["zero"] == [0, 0, 0] and at["one"] == [1, 1, 1] and at["linear"] == [0, 0.5, 1]
    assert at["cosine"] == pytest.approx([0, 0.5, 1]) and at["sigmoid"] == pytest.approx([0, 0.5, 1])
    assert at["exponential"] == pytest.approx([0, 1 - math.exp(-2.5), 1 - math.exp(-5)])
    assert SCHEDULES["exponential"](0.2) > 0.6 > SCHEDULES["cosine"](0.2)  # it rises early


@pytest.mark.parametrize("change", [
    {"subject_weight": -1.0}, {"temperature": 0.0}, {"schedule": "steep"},
    {"subject_weight": 0.0, "background_weight": 0.0, "joint_weight": 0.0},
])  # fmt: skip
def test_impossible_settings_are_named(change):
    with pytest.raises(LikenessError, match="attractor"):
        Attractor(**change)


def test_the_paper_s_templates():
    assert len(set(SUBJECT_TEMPLATES)) == len(set(SCENE_TEMPLATES)) == 15
    assert all(t.count("{}") == 1 and t.endswith(".") for t in SUBJECT_TEMPLATES)
    assert all(t.count("{}") == 2 and t.endswith(" in the {}.") for t in SCENE_TEMPLATES)


def test_with_an_attractor_the_paper_s_rate_and_batch():
    for kind in (TextualInversionConfig, NeTIConfig):
        config = kind.paper(attractor=Attractor(), steps=7)
        assert (config.learning_rate, config.batch_size, config.steps) == (1e-5, 8, 7)
        assert kind.paper().learning_rate > 1e-3


def test_the_curve_is_drawn(tmp_path):
    paths = {save_curve(Attractor(schedule=name), tmp_path) for name in SCHEDULES}
    assert len(paths) == 6 and all(path.stat().st_size > 500 for path in paths)


# --- a lesson --------------------------------------------------------------------------------------------


def test_every_photo_is_shown_under_three_prompts(base, subject):
    lesson = plus(base, subject).batch(0)
    assert lesson.pool_R.tolist() == [0] * 3 + [1] * 3 + [2] * 3 and lesson.photo_R.tolist() == [0, 1, 2] * 3
    for pool, prompt in zip(lesson.pool_R.tolist(), lesson.prompts, strict=True):
        assert ("<finn>" in prompt, "<finn-background>" in prompt, " fish " in prompt) == [
            (True, False, False), (False, True, True), (True, True, False)][pool]  # fmt: skip
    assert torch.equal(lesson.rows.noise_BCHW[:3], lesson.rows.noise_BCHW[6:])
    assert torch.equal(lesson.rows.t_B[:3], lesson.rows.t_B[3:6])
    assert lesson.used_R.all() and lesson.contrast == 0.0


def test_the_mask_is_the_photo_s_at_the_latent_s_size(base, subject):
    mask_B1HW = plus(base, subject).batch(0).mask_R1HW
    expected = torch.zeros(8, 8)
    expected[2:6, 1:5] = 1.0  # rows 8 to 24 and columns 4 to 20 of 32
    torch.testing.assert_close(mask_B1HW[0, 0], expected, atol=0.26, rtol=0)
    assert mask_B1HW[0, 0, 3, 2] == 1.0 and mask_B1HW[0, 0, 0].sum() == 0


def test_the_contrast_follows_the_run(base, subject):
    built = plus(base, subject, schedule="linear", contrastive_weight=0.5)
    assert [built.batch(index).contrast for index in (0, 5, 9)] == pytest.approx([0.0, 0.25, 0.45])


def test_random_prompts_show_a_photo_once(base, subject):
    lessons = [plus(base, subject, prompts="random").batch(n) for n in range(6)]
    assert all(len(lesson.prompts) == 3 for lesson in lessons)
    assert {pool for lesson in lessons for pool in lesson.pool_R.tolist()} == {0, 1, 2}


def with_masks(subject, *masks):
    """The subject with other masks: None, or a value for all of it."""
    photos = []
    for photo, value in zip(subject.photos, masks, strict=True):
        if value is None:
            photos.append(replace(photo, mask_path=None, mask_sha256=None))
        else:
            image, mask = torch.rand(1, 32, 32, 3), torch.full((1, 32, 32), value)
            store = photo.path.parent / f"all {value}"
            photos.append(from_images(image, store, masks=mask, class_noun="fish").photos[0])
    return replace(subject, photos=tuple(photos))


def test_masks_that_are_missing_empty_or_full(base, subject, caplog):
    """Nothing inside to learn from: the joint prompt alone. Nothing outside: no background prompt."""
    odd = with_masks(subject, None, 0.0, 1.0)
    built = plus(base, odd)
    assert built.curriculum.used_3N.tolist() == [[False, False, True], [False] * 3, [True] * 3]
    assert "no mask" in caplog.text and "no background" in caplog.text and "Segment Subject" in caplog.text
    loss = built.loss(built.batch(0))
    assert loss.terms["background"].item() == 0.0 and loss.terms["subject"] > 0 and loss.terms["joint"] > 0
    built = plus(base, with_masks(subject, None, None, None), prompts="random")
    assert all((built.batch(n).pool_R == 2).all() for n in range(3))
    built.loss(built.batch(0)).total.backward()
    assert built.rows_ND.grad.any()


def test_one_photo_leaves_the_contrast_out(base, subject, caplog):
    one = replace(subject, photos=subject.photos[:1])
    built = plus(base, one, config=TextualInversionConfig(batch_size=1, attractor=Attractor()))
    assert "two photos" in caplog.text
    assert built.loss(built.batch(0)).terms["contrastive"].item() == 0.0


def test_an_attractor_for_each_photo(base, subject):
    built = plus(base, subject, per_image=True)
    words = attractor_words(subject, built.attractor)
    assert len(set(words)) == 3 and built.attractor_WND.shape[0] == 3
    lesson = built.batch(0)
    for row, prompt in enumerate(lesson.prompts):
        photo = built.cache.source_N[lesson.rows.views_B[row]]
        assert (words[photo] in prompt) == (lesson.pool_R[row] > 0)
    assert set(built.export().beside) == {"attractor-0", "attractor-1", "attractor-2"}


# --- equation 6, read plainly ----------------------------------------------------------------------------


def plain_loss(built, lesson, settings, encode):
    """One prompt at a time. ``encode(prompt, row)`` gives the states that predict, and the features'."""
    model, rows, sums = built.backbone, lesson.rows, {0: [], 1: [], 2: []}
    v, a = [], []
    for row, prompt in enumerate(lesson.prompts):
        text, features_LD = encode(prompt, row)
        z0, noise, t = (x[row : row + 1] for x in (rows.latents_BCHW, rows.noise_BCHW, rows.t_B))
        abar = model.schedule.abar[t].float()
        noisy = abar.sqrt() * z0 + (1 - abar).sqrt() * noise
        gap = noise - model.predict(noisy, t, text)
        pool = int(lesson.pool_R[row])
        mask = lesson.mask_R1HW[row]
        gap = gap * (mask if pool == 0 else 1 - mask if pool == 1 else 1.0)
        sums[pool].append((gap**2).mean())
        for word, found, wanted in (("<finn>", v, 0), ("<finn-background>", a, 1)):
            if pool == wanted:
                at = 1 + len(model.token_ids(prompt.partition(word)[0]))
                found.append(features_LD[at] / features_LD[at].norm())
    positive = sum(torch.exp(x @ y / TAU) for i, x in enumerate(v) for j, y in enumerate(v) if i != j)
    negative = sum(torch.exp(x @ y / TAU) for x in v for y in a)
    nce = -torch.log(positive / (positive + negative))
    means = [torch.stack(sums[pool]).mean() for pool in range(3)]
    w = (settings.subject_weight, settings.background_weight, settings.joint_weight)
    return sum(x * y for x, y in zip(w, means, strict=True)) + lesson.contrast * nce, nce


SETTINGS = {"subject_weight": 0.7, "background_weight": 1.3, "joint_weight": 0.4, "schedule": "one",
            "contrastive_weight": 0.2}  # fmt: skip


def compared(built, lesson, ours, plain):
    """Total, contrastive term and every gradient to 1e-5."""
    total, nce = plain
    assert ours.total.item() == pytest.approx(total.item(), abs=1e-5)
    assert ours.terms["contrastive"].item() == pytest.approx(nce.item(), abs=1e-5)
    parameters = built.parameters()
    got = torch.autograd.grad(ours.total, list(parameters.values()))
    expected = torch.autograd.grad(total, list(parameters.values()))
    for name, one, other in zip(parameters, got, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4, msg=name)
        assert one.norm() > 1e-6, name


def test_a_step_of_ti_plus_is_equation_6(base, subject):
    built = plus(base, subject, **SETTINGS)
    with torch.no_grad():  # away from the start, where v* is the class noun's own row
        built.rows_ND.add_(0.3 * torch.randn(built.rows_ND.shape, generator=torch.Generator().manual_seed(1)))
    lesson = built.batch(3)

    def encode(prompt, row):
        text = built.backbone.encode_prompts([prompt], embeddings=built.vectors())
        return text, text.context[0]

    compared(built, lesson, built.loss(lesson), plain_loss(built, lesson, built.attractor, encode))


def test_a_step_of_neti_plus_is_equation_6(base, subject):
    """Features are the keys' states, averaged over the layers. Nested dropout is on."""
    config = NeTIConfig(batch_size=2, steps=10, nested_dropout=0.6, attractor=Attractor(**SETTINGS))
    built = plus(base, subject, config=config)
    lesson, keep_SR = built.batch(3)
    assert 0 < (keep_SR < 128).float().mean() < 1 and torch.equal(keep_SR[:, :2], keep_SR[:, 4:])

    class Row:
        def __init__(self, mapper, row):
            self.mapper, self.row, self.num_layers, self.width = mapper, row, mapper.num_layers, mapper.width

        def __call__(self, t_B):
            return self.mapper(t_B, keep_SR[:, self.row : self.row + 1])

    def encode(prompt, row):
        mappers = {built.trigger: built.mapper, **built.attractors}
        words = {word: Row(mapper, row) for word, mapper in mappers.items()}
        text = built.backbone.encode_prompts([prompt], mappers=words)
        return text, text.at(lesson.rows.t_B[row : row + 1]).keys.mean(0)[0]

    plain = plain_loss(built, lesson, built.attractor, encode)
    compared(built, lesson, built.loss((lesson, keep_SR)), plain)
    built.close()


# --- NeTI's own ------------------------------------------------------------------------------------------


def test_nested_dropout_is_a_function_of_seed_and_batch(base, subject):
    built = NeTI(open_backbone(base), subject, NeTIConfig(), seed=0)
    first = built.kept(4, 50)
    assert torch.equal(first, built.kept(4, 50)) and not torch.equal(first, built.kept(5, 50))
    many = torch.cat([built.kept(n, 8) for n in range(200)])
    whole = (many == 128).all(dim=1)
    assert 0.4 < whole.float().mean() < 0.6  # one throw for all rows of a layer
    assert many[~whole].float().mean().item() == pytest.approx(63.5, abs=4)
    assert NeTI(open_backbone(base), subject, NeTIConfig(nested_dropout=0.0), seed=0).kept(0, 2) is None


def test_xti_starts_as_the_class_noun_everywhere(base, subject):
    built = NeTI(open_backbone(base), subject, NeTIConfig(mapper="table", batch_size=2), seed=0)
    list(built.prepare())
    fish_D = open_backbone(base).token_embedding("fish")[0]
    assert torch.equal(built.mapper.table.detach(), fish_D.repeat(built.backbone.num_cross_attentions, 1))
    built.loss(built.batch(0)).total.backward()
    assert (built.mapper.table.grad.norm(dim=1) > 0).all()  # every layer learns
    assert set(built.export().tensors) == {"table"}
    built.close()


@pytest.mark.parametrize("config", [TextualInversionConfig, NeTIConfig])
def test_an_attractor_needs_views_of_one_size(config):
    assert config(crop="bucket").crop == "bucket"
    with pytest.raises(LikenessError, match="crop"):
        config(crop="bucket", attractor=Attractor())


@pytest.mark.parametrize("change", [{"nested_dropout": 1.5}, {"mapper": "x"}, {"sigma_t": 0.0}])
def test_impossible_neti_settings_are_named(change):
    with pytest.raises(LikenessError, match=next(iter(change))):
        NeTIConfig(**change)
