"""CLIP-T, CLIP-I and DINO as the personalization papers use them, and the mean over a study.

Pure functions over unit features; no model and no picture is opened here. The protocol is DreamBooth's (Ruiz
et al. 2022, arXiv:2208.12242, sec. 4.2) with the one-photo pairing of the held-out protocol (PDST):

    CLIP-T  cosine between a generated picture and its prompt, read without the identifier
    CLIP-I  cosine between CLIP features of a generated picture and of real photos of the same subject
    DINO    the same with DINO features, which tell two things of one kind apart
"""
# Shapes: N generated pictures, M reference photos, D feature width.

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)

IDENTIFIER_RULE = "identifier or placeholder removed, class noun kept"
AVERAGING_ORDER = "pictures of a (subject, prompt), then prompts, then subjects"


def strip_identifier(prompt: str, trigger: str, class_noun: str) -> str:
    """What a text encoder that never met the subject should read: the class noun in the trigger's place.

    ``"a sks dog on a beach"`` with trigger ``"sks dog"`` or ``"sks"``, ``"a <toy> on a beach"`` with
    ``"<toy>"``, and ``"a {} on a beach"`` all become ``"a dog on a beach"``. Whole words only, any case.
    Articles stay as they are, so that every method's prompt from one template gives the same text.
    """
    noun = _words(class_noun)
    text = _swap(prompt, r"\{\}", class_noun, noun)
    if trigger.strip():
        text = _swap(text, _words(trigger), class_noun, noun)
        identifier = re.sub(rf"\s+{noun}$", "", " ".join(trigger.split()), flags=re.I)
        # left over without the noun, as in "sks puppy": the identifier goes, the rest stays
        text = re.sub(_whole(_words(identifier)), "", text, flags=re.I) if identifier != trigger else text
    return " ".join(text.split())


def _swap(text: str, pattern: str, class_noun: str, noun_pattern: str) -> str:
    """Replace ``pattern``, together with a class noun that follows it, by the class noun."""
    following = rf"(?:\s+{noun_pattern}(?!\w))?"
    return re.sub(_whole(pattern) + following, lambda _: class_noun, text, flags=re.I)


def _words(phrase: str) -> str:
    return r"\s+".join(map(re.escape, phrase.split()))


def _whole(pattern: str) -> str:
    return rf"(?<!\w)(?:{pattern})(?!\w)"


def clip_t(image_ND: Tensor, text_ND: Tensor) -> Tensor:
    """Cosine of each picture with its own prompt's text, (N,). NaN where a feature is not finite."""
    return _paired_cosine(image_ND, text_ND)


def clip_i(generated_ND: Tensor, reference_MD: Tensor) -> Tensor:
    """Mean cosine of each picture with every reference photo, (N,), of CLIP features.

    No reference gives NaN and a warning, never 0. References with non-finite features are left out, with a
    warning; a picture with non-finite features scores NaN, which ``average`` counts as skipped.
    """
    return _mean_cosine(generated_ND, reference_MD, metric="CLIP-I")


def dino(generated_ND: Tensor, reference_MD: Tensor) -> Tensor:
    """``clip_i`` on DINO features: mean cosine with every reference photo, (N,)."""
    return _mean_cosine(generated_ND, reference_MD, metric="DINO")


def paired(generated_ND: Tensor, reference_ND: Tensor) -> Tensor:
    """Cosine of each picture with the one photo whose caption was its prompt, (N,): the held-out protocol."""
    return _paired_cosine(generated_ND, reference_ND)


def _paired_cosine(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    if a_ND.shape != b_ND.shape:
        raise ValueError(f"features must pair up, got {tuple(a_ND.shape)} and {tuple(b_ND.shape)}")
    cosine_N = (_unit(a_ND) * _unit(b_ND)).sum(dim=-1)
    return torch.where(torch.isfinite(cosine_N), cosine_N, torch.full_like(cosine_N, math.nan))


def _mean_cosine(generated_ND: Tensor, reference_MD: Tensor, *, metric: str) -> Tensor:
    good_MD = reference_MD[torch.isfinite(reference_MD).all(dim=-1)]
    if len(good_MD) < len(reference_MD):
        log.warning("%s: %d references not finite, left out", metric, len(reference_MD) - len(good_MD))
    if len(good_MD) == 0:
        log.warning("%s has no reference photo to compare with, so the score is not a number", metric)
        return torch.full((len(generated_ND),), math.nan)
    cosine_N = (_unit(generated_ND) @ _unit(good_MD).T).mean(dim=1)
    return torch.where(torch.isfinite(cosine_N), cosine_N, torch.full_like(cosine_N, math.nan))


def _unit(features: Tensor) -> Tensor:
    """fp32 rows of length 1, so that a dot product is a cosine whatever came in. A zero row becomes NaN."""
    x = features.float()
    unit: Tensor = x / x.norm(dim=-1, keepdim=True)
    return unit


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean with its interval. ``count`` pictures entered it, ``skipped`` had no finite score."""

    value: float
    low: float
    high: float
    count: int
    skipped: int
    interval_over: Literal["subjects", "prompts", "nothing"]


Key = tuple[str, str]  # (subject, prompt)


def average(scores: Iterable[tuple[str, str, float]], *, level: float = 0.95, seed: int = 0) -> Mean:
    """Mean of (subject, prompt, score) rows in the order pictures, prompts, subjects, with its interval.

    The papers do not state the order; with equal counts it is the plain mean. The interval resamples
    subjects; with a single subject it resamples that subject's prompts, and says so; with a single prompt
    there is nothing to resample and the interval is NaN.
    """
    rows = list(scores)
    finite = [row for row in rows if math.isfinite(row[2])]
    by_subject = subject_means(finite)
    by_prompt = [value for _, value in sorted(_prompt_means(finite).items())]
    values, over = (list(by_subject.values()), "subjects") if len(by_subject) > 1 else (by_prompt, "prompts")
    low, high = bootstrap_interval(values, level=level, seed=seed)
    return Mean(
        value=_mean(list(by_subject.values())),
        low=low,
        high=high,
        count=len(finite),
        skipped=len(rows) - len(finite),
        interval_over=over if len(values) > 1 else "nothing",  # type: ignore[arg-type]
    )


def subject_means(scores: Iterable[tuple[str, str, float]]) -> dict[str, float]:
    """Each subject's mean over its prompts' means, by subject name. Non-finite scores are left out."""
    groups: dict[str, list[float]] = {}
    for (subject, _), value in sorted(_prompt_means(scores).items()):
        groups.setdefault(subject, []).append(value)
    return {subject: _mean(values) for subject, values in groups.items()}


def _prompt_means(scores: Iterable[tuple[str, str, float]]) -> Mapping[Key, float]:
    groups: dict[Key, list[float]] = {}
    for subject, prompt, value in scores:
        if math.isfinite(value):
            groups.setdefault((subject, prompt), []).append(value)
    return {key: _mean(values) for key, values in groups.items()}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def bootstrap_interval(
    values: Sequence[float],
    *,
    statistic: Callable[[np.ndarray], np.ndarray] | None = None,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron 1979) of a statistic, the mean unless told, over ``values``.

    One value per subject: subjects are what a claim generalises over. ``statistic`` maps (draws, n) to
    (draws,). Fewer than two values give (NaN, NaN): nothing is known of the spread.
    """
    data = np.asarray([v for v in values if math.isfinite(v)], dtype=np.float64)
    if len(data) < 2:
        return math.nan, math.nan
    picks = np.random.default_rng(seed).integers(0, len(data), size=(draws, len(data)))
    resampled = data[picks]
    means = resampled.mean(axis=1) if statistic is None else statistic(resampled)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
