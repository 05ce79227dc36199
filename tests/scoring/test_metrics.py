from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from likeness.scoring import metrics
from likeness.scoring.metrics import average, bootstrap_interval, strip_identifier

NAN = math.nan


@pytest.mark.parametrize(
    ("prompt", "trigger", "noun", "text"),
    [
        ("a photo of sks dog on a beach", "sks dog", "dog", "a photo of dog on a beach"),
        ("a photo of sks dog on a beach", "sks", "dog", "a photo of dog on a beach"),
        ("a photo of a <toy> on a beach", "<toy>", "fish", "a photo of a fish on a beach"),
        ("a photo of a <toy> fish", "<toy>", "fish", "a photo of a fish"),
        ("a photo of a {}, swimming", "<toy>", "fish", "a photo of a fish, swimming"),
        ("A SKS Dog's hat", "sks dog", "dog", "A dog's hat"),
        ("a sks puppy", "sks dog", "dog", "a puppy"),
        ("sks teddy bear with a teddy bear", "sks teddy bear", "teddy bear", "teddy bear with a teddy bear"),
        ("asks dogs and sksy", "sks dog", "dog", "asks dogs and sksy"),
        ("a dog", "", "dog", "a dog"),
        ("a .* dog", ".*", "dog", "a dog"),
        (r"a <a\1> in a \g<0>", r"<a\1>", r"d\1g", r"a d\1g in a \g<0>"),
        ("a sks   dog\n runs", "sks  dog", "dog", "a dog runs"),
    ],
)
def test_the_identifier_goes_and_the_noun_stays(prompt: str, trigger: str, noun: str, text: str) -> None:
    assert strip_identifier(prompt, trigger, noun) == text


@given(before=st.text("ab ,.", max_size=8), after=st.text("ab ,.", max_size=8))
def test_every_methods_prompt_gives_the_same_text(before: str, after: str) -> None:
    prompts = {
        t: f"{before} {w} {after}" for t, w in [("sks dog", "sks dog"), ("sks", "sks dog"), ("<x>", "<x>")]
    }
    texts = {strip_identifier(prompt, trigger, "dog") for trigger, prompt in prompts.items()}
    assert texts == {" ".join(f"{before} dog {after}".split())}
    assert {strip_identifier(text, "sks dog", "dog") for text in texts} == texts


def test_scores_by_hand() -> None:
    generated = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    references = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, -1.0]])
    expected = torch.tensor([(1 + 0.6 + 0) / 3, (0 + 0.8 - 1) / 3])
    torch.testing.assert_close(metrics.clip_i(generated, references), expected)
    torch.testing.assert_close(metrics.dino(generated, references), expected)
    torch.testing.assert_close(metrics.paired(generated, references[:2]), torch.tensor([1.0, 0.8]))
    torch.testing.assert_close(metrics.clip_t(generated, references[1:]), torch.tensor([0.6, -1.0]))
    with pytest.raises(ValueError, match="pair up"):
        metrics.clip_t(generated, references)


def test_no_reference_is_not_a_number_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    scores = metrics.dino(torch.ones(3, 4), torch.empty(0, 4))
    assert scores.shape == (3,) and torch.isnan(scores).all()
    assert "no reference photo" in caplog.text


def test_non_finite_features_are_skipped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    generated = torch.tensor([[1.0, 0.0], [NAN, 1.0], [0.0, 0.0]])
    references = torch.tensor([[0.0, 1.0], [math.inf, 1.0], [1.0, 0.0]])
    scores = metrics.clip_i(generated, references)
    assert scores[0] == pytest.approx(0.5) and torch.isnan(scores[1:]).all()
    assert "1 references not finite" in caplog.text
    mean = average([("fish", "a", float(s)) for s in scores])
    assert (mean.value, mean.count, mean.skipped) == (pytest.approx(0.5), 1, 2)


def test_the_average_takes_pictures_then_prompts_then_subjects() -> None:
    rows = [("fish", "a", 1.0), ("fish", "a", 0.0), ("fish", "b", 1.0), ("cat", "a", 0.25)]
    assert average(rows).value == pytest.approx(((0.5 + 1) / 2 + 0.25) / 2)
    assert average(rows).interval_over == "subjects"
    assert metrics.subject_means(rows) == {"fish": 0.75, "cat": 0.25}


def test_a_single_subject_has_an_interval_over_its_prompts() -> None:
    mean = average([("fish", p, s) for p, s in [("a", 0.1), ("b", 0.5), ("c", 0.9)]])
    assert mean.interval_over == "prompts" and 0.1 <= mean.low < mean.value < mean.high <= 0.9
    alone = average([("fish", "a", 0.1), ("fish", "a", 0.3)])
    assert alone.interval_over == "nothing" and math.isnan(alone.low) and alone.value == pytest.approx(0.2)
    assert math.isnan(average([]).value)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12))
def test_the_interval_holds_the_mean_and_stays_inside_the_data(values: list[float]) -> None:
    low, high = bootstrap_interval(values, draws=400)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert bootstrap_interval(values, draws=400) == (low, high)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(0.3, 0.1, size=(300, 20))
    hits = [low <= 0.3 <= high for low, high in (bootstrap_interval(s.tolist(), draws=500) for s in samples)]
    assert 0.88 <= np.mean(hits) <= 0.97  # the percentile bootstrap of 20 covers a little less than 95 %


def test_another_statistic() -> None:
    low, high = bootstrap_interval([1, 2, 3, 100], statistic=lambda x: np.median(x, axis=1))
    assert low >= 1 and high <= 100
    assert math.isnan(bootstrap_interval([1.0])[0])
    assert bootstrap_interval([1.0, 1.0, NAN]) == (1.0, 1.0)


@given(st.integers(0, 1000))
def test_cosines_ignore_the_scale_of_features(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(4, 6, generator=generator) for _ in range(2))
    torch.testing.assert_close(metrics.paired(a, b), metrics.paired(a * 7, b * 0.1))
    assert metrics.dino(a, b).abs().max() <= 1 + 1e-6
