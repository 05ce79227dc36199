"""Textual Inversion's own: the new word, its rows, the templates."""

from dataclasses import replace

import pytest
import torch
from likeness.backbones import open_backbone
from likeness.core.errors import LikenessError
from likeness.trainers.textual_inversion import (
    TEMPLATES,
    TextualInversion,
    TextualInversionConfig,
    placeholder,
)


def method(base, subject, **changes):
    config = TextualInversionConfig(**{"batch_size": 4, **changes})
    built = TextualInversion(open_backbone(base), subject, config, seed=0)
    list(built.prepare())
    return built


def test_the_paper_s_templates():
    assert len(set(TEMPLATES)) == 27
    assert all(template.count("{}") == 1 for template in TEMPLATES)


def test_the_new_word_starts_as_the_class_noun(base, subject):
    built = method(base, subject, num_vectors=3)
    assert built.trigger == "<finn>"
    fish_1D = open_backbone(base).token_embedding("fish")
    assert torch.equal(built.rows_ND.detach(), fish_1D.repeat(3, 1))
    assert built.rows_ND.dtype == torch.float32


def test_several_tokens_give_their_mean_and_a_warning(base, subject, caplog):
    built = method(base, subject, initial_words="red fish")
    torch.testing.assert_close(
        built.rows_ND.detach()[0], open_backbone(base).token_embedding("red fish").mean(0)
    )
    assert "2 tokens" in caplog.text


def test_a_word_that_the_model_knows_is_refused(base, subject):
    known = open_backbone(base).with_embeddings({"<finn>": torch.zeros(1, 32)})
    with pytest.raises(LikenessError, match="already"):
        TextualInversion(known, subject, TextualInversionConfig(), seed=0)
    assert placeholder(replace(subject, name="my cat")) == "<my-cat>"


def test_captions_come_before_templates(base, subject):
    _, prompts = method(base, subject).batch(0)
    assert all("<finn>" in prompt for prompt in prompts)
    captions = {photo.caption.replace("{}", "<finn>") for photo in subject.photos}
    assert set(prompts) <= captions
    _, prompts = method(base, subject, use_captions=False).batch(0)
    assert set(prompts) <= {template.replace("{}", "<finn>") for template in TEMPLATES}
    assert len(set(prompts)) > 1  # a template for each row


def test_gradients_reach_the_rows_and_nothing_else(base, subject):
    built = method(base, subject, num_vectors=2)
    built.loss(built.batch(0)).total.backward()
    assert built.rows_ND.grad is not None and (built.rows_ND.grad.norm(dim=1) > 0).all()
    for part in ("unet", "text_encoder"):
        assert all(p.grad is None for p in open_backbone(base).module(part).parameters())


def test_the_rows_lengths_are_bounded_when_asked(base, subject):
    built = method(base, subject, max_norm=2.0)
    start = built.rows_ND.detach().norm()
    with torch.no_grad():
        built.rows_ND.mul_(5.0)
        built.after_step()
    assert built.rows_ND.detach().norm().item() == pytest.approx(2 * start.item(), rel=1e-5)


def test_presets():
    paper = TextualInversionConfig.paper()
    assert (paper.steps, paper.learning_rate, paper.num_vectors, paper.weight_decay) == (5000, 0.04, 1, 0.0)
    assert TextualInversionConfig.practical(steps=7).steps == 7
    assert TextualInversionConfig.practical("sd2") == TextualInversionConfig.practical("sd1")


@pytest.mark.parametrize("change", [{"num_vectors": 0}, {"num_vectors": 65}, {"max_norm": -1.0}])
def test_impossible_settings_are_named(change):
    with pytest.raises(LikenessError, match=next(iter(change))):
        TextualInversionConfig(**change)
