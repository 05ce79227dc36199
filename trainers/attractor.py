"""The attractor: a second word that soaks up the background, so that the first learns the subject alone
(Li et al., "Towards More Accurate Personalized Image Generation", section 4).

    L_sub   = |M_s (eps - eps_theta(z_t, t, c("a photo of a v*")))|^2                     (eq. 4)
    L_bg    = |M_b (eps - eps_theta(z_t, t, c("a photo of a S in the A*")))|^2            (eq. 4)
    L_joint = |eps - eps_theta(z_t, t, c("a photo of a v* in the A*"))|^2
    L_NCE   = -log [ sum_P e^(v_i v_j / tau) / (sum_P e^(v_i v_j / tau) + sum_N e^(v_i A_k / tau)) ]   (eq. 5)
    L       = w_s L_sub + w_b L_bg + w_i L_joint + w_c(step) L_NCE                        (eq. 6)

v* is the subject's word, A* the attractor, S the class noun. It plugs into Textual Inversion (TI+) and NeTI
(NeTI+). The paper does not state the weights, tau, the ramps' formulas, how many prompts a photo sees per
step, or whether every photo has an A* of its own; what is chosen here says so.
"""
# Shapes: B photos of a batch, R rows (a photo under a prompt), N cached views, C latent channels, H W latent
# size, L tokens, D text width, K places of a word.

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import LikenessError
from ..core.paths import slug
from ..core.randomness import generator
from ..subjects.subject import Subject
from ..subjects.views import Crop
from .data import LatentCache, Rows
from .method import require
from .objectives import LossTerms, MaskNorm, info_nce, masked_loss

log = logging.getLogger(__name__)

Schedule = Literal["zero", "one", "linear", "sigmoid", "cosine", "exponential"]
Prompts = Literal["all", "random"]

# The paper's appendix, section 10. Single slots: the subject.
SUBJECT_TEMPLATES = (
    "a photo of a {}.",
    "a rendering of a {}.",
    "the photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a close-up photo of the {}.",
    "a rendition of the {}.",
    "a photo of a nice {}.",
)
# Two slots: with the class noun the background's pool, with v* the joint one.
SCENE_TEMPLATES = (
    "a photo of a {} in the {}.",
    "a rendering of a {} in the {}.",
    "a cropped photo of the {} in the {}.",  # Differs: "of the in the {}" in the paper, which lost a slot
    "the photo of a {} in the {}.",
    "a photo of a clean {} in the {}.",
    "a photo of my {} in the {}.",
    "a photo of the nice {} in the {}.",
    "a good photo of a {} in the {}.",
    "a rendition of a {} in the {}.",
    "a photo of the clean {} in the {}.",
    "a photo of a cool {} in the {}.",
    "a close-up photo of a {} in the {}.",
    "a photo of the cool {} in the {}.",
    "a cropped photo of a {} in the {}.",
    "a photo of one {} in the {}.",
)

# Figure 16 shows curves without formulas. Ours start at 0 and end near 1; the exponential rises early, which
# fits its doing badly: "low weight at the beginning is crucial".
SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "zero": lambda p: 0.0,
    "one": lambda p: 1.0,
    "linear": lambda p: p,
    "sigmoid": lambda p: (_sigmoid(12 * (p - 0.5)) - _sigmoid(-6)) / (_sigmoid(6) - _sigmoid(-6)),
    "cosine": lambda p: (1 - math.cos(math.pi * p)) / 2,
    "exponential": lambda p: 1 - math.exp(-5 * p),
}

# Section 5, implementation details, of TI+ and NeTI+ alike; the number of steps is not told.
PAPER_SETTINGS = {"learning_rate": 1e-5, "batch_size": 8, "schedule": "constant"}

POOLS = ("subject", "background", "joint")
MIN_SUBJECT = 0.001  # share of the picture under which a mask counts as empty
MIN_BACKGROUND = 0.01  # and over whose complement as full


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@dataclass(frozen=True, kw_only=True)
class Attractor:
    """How the attractor learns. The paper states none of these numbers but the schedule: they are ours."""

    # A masked loss is a mean over all cells, of which a mask has a share: three times it weighs as L_joint.
    subject_weight: float = 3.0  # w_s
    background_weight: float = 3.0  # w_b
    joint_weight: float = 1.0  # w_i
    contrastive_weight: float = 0.1  # w_c at the end of its schedule
    schedule: Schedule = "cosine"  # of w_c: best beside sigmoid in section 6.1 and Figure 7
    temperature: float = 0.07  # tau: MoCo's (He et al. 2020), for features of length 1
    normalize: bool = True  # features to length 1: CLIP's states are about 27 long, and exp overflows
    mask_norm: MaskNorm = "mean"  # eq. 4 as it stands, over all cells; "area": over the mask's alone
    per_image: bool = False  # one A* for each photo instead of one for all
    prompts: Prompts = "all"  # every photo under all three prompts of a step; "random": under one of them
    initial_words: str = "background"  # where A* starts

    def __post_init__(self) -> None:
        weights = {name: getattr(self, f"{name}_weight") for name in (*POOLS, "contrastive")}
        bad = [name for name, weight in weights.items() if not 0 <= weight < math.inf]
        if bad or self.temperature <= 0 or self.schedule not in SCHEDULES:
            raise LikenessError(
                f"An attractor with weights {weights}, temperature {self.temperature} and schedule "
                f"{self.schedule!r} is not possible.",
                expected=f"weights of 0 or more, a temperature above 0, one of {', '.join(SCHEDULES)}",
            )
        if not any(weights[pool] for pool in POOLS):
            raise LikenessError("All weights of the attractor's losses are 0.", fix="Raise one of them.")

    def contrast(self, progress: float) -> float:
        """w_c after a share ``progress`` of the steps, 0 to 1."""
        return self.contrastive_weight * SCHEDULES[self.schedule](min(max(progress, 0.0), 1.0))


def attractor_words(subject: Subject, attractor: Attractor) -> list[str]:
    """A* for every photo: ``<name-background>``, with ``per_image`` each with its number."""
    name = slug(subject.name).replace(" ", "-")
    if not attractor.per_image:
        return [f"<{name}-background>"] * len(subject.photos)
    return [f"<{name}-background-{number}>" for number in range(len(subject.photos))]


def name_of(number: int, total: int) -> str:
    """What the file of one of ``total`` attractors is called after the subject's."""
    return "attractor" if total == 1 else f"attractor-{number}"


@dataclass(frozen=True)
class Lesson:
    """One batch: every row is a photo under a prompt of one pool. Rows of a photo share z_0, eps and t."""

    rows: Rows
    prompts: list[str]
    pool_R: Tensor  # index into POOLS
    photo_R: Tensor  # which of the batch's photos
    mask_R1HW: Tensor  # of the subject
    used_R: Tensor  # False where the mask cannot tell this pool's part
    contrast: float  # w_c now


class Curriculum:
    """Prompts, masks and losses of one run; the trainers own the words and their vectors."""

    def __init__(
        self, attractor: Attractor, subject: Subject, *, word: str, seed: int, num_batches: int
    ) -> None:
        self.attractor, self.subject, self.word = attractor, subject, word
        self.seed, self.num_batches = seed, num_batches
        self.words = attractor_words(subject, attractor)

    def place_masks(self, masks: Sequence[Tensor], cache: LatentCache) -> None:
        """Masks (1, H, W) in pixels of every cached view, brought to the latents' size, edges kept soft."""
        (size,), source_N = cache.sizes(), cache.source_N
        mask_N1HW = F.adaptive_avg_pool2d(torch.stack(list(masks)), size)
        share_N = mask_N1HW.flatten(1).mean(1)
        known_N = torch.tensor([self.subject.photos[n].mask_path is not None for n in source_N])
        sub_N = known_N & (share_N >= MIN_SUBJECT)
        bg_N = sub_N & (1 - share_N >= MIN_BACKGROUND)
        self._warn(sub_N, bg_N, source_N)
        device = cache.mean_N[0].device
        self.mask_N1HW, self.source_N = mask_N1HW.to(device), source_N
        self.used_3N = torch.stack([sub_N, bg_N, torch.ones_like(sub_N)]).to(device)

    def _warn(self, sub_N: Tensor, bg_N: Tensor, source_N: Sequence[int]) -> None:
        for used_N, what in ((sub_N, "no mask of the subject"), (bg_N, "no background beside the subject")):
            numbers = sorted(
                {source_N[i] for i in (~used_N & (sub_N | (used_N is sub_N))).nonzero().flatten()}
            )
            names = ", ".join(self.subject.photos[number].path.name for number in numbers)
            if names:
                log.warning("The attractor: %s in %s. Segment Subject makes masks.", what, names)

    def lesson(self, rows: Rows, index: int) -> Lesson:
        """The ``index``-th batch of the run, from its photos' rows."""
        pool_R, photo_R = self._pools(rows, index)
        views_R = torch.tensor(rows.views_B, device=photo_R.device)[photo_R]
        prompts = [
            self._prompt(POOLS[pool], self.source_N[view], index, row)
            for row, (pool, view) in enumerate(zip(pool_R.tolist(), views_R.tolist(), strict=True))
        ]
        return Lesson(
            rows=Rows(
                rows.latents_BCHW[photo_R],
                rows.noise_BCHW[photo_R],
                rows.t_B[photo_R],
                tuple(views_R.tolist()),
            ),
            prompts=prompts,
            pool_R=pool_R,
            photo_R=photo_R,
            mask_R1HW=self.mask_N1HW[views_R],
            used_R=self.used_3N[pool_R, views_R],
            contrast=self.attractor.contrast(index / max(1, self.num_batches)),
        )

    def _pools(self, rows: Rows, index: int) -> tuple[Tensor, Tensor]:
        """Of every row its pool and its photo. With "random" prompts, what a mask cannot tell goes joint."""
        size, device = len(rows.t_B), rows.t_B.device
        photo_B = torch.arange(size, device=device)
        if self.attractor.prompts == "all":
            return torch.arange(3, device=device).repeat_interleave(size), photo_B.repeat(3)
        drawn_B = torch.randint(3, (size,), generator=generator(self.seed, "pool", index)).to(device)
        used_B = self.used_3N[drawn_B, torch.tensor(rows.views_B, device=device)]
        return torch.where(used_B, drawn_B, torch.full_like(drawn_B, 2)), photo_B

    def _prompt(self, pool: str, photo: int, index: int, row: int) -> str:
        templates = SUBJECT_TEMPLATES if pool == "subject" else SCENE_TEMPLATES
        stream = generator(self.seed, "attractor template", index, row)
        template = templates[int(torch.randint(len(templates), (1,), generator=stream))]
        first, *rest = template.split("{}")
        slots = [self.subject.class_noun if pool == "background" else self.word, self.words[photo]]
        return first + "".join(slot + part for slot, part in zip(slots, rest, strict=False))

    def loss(
        self, lesson: Lesson, pred_RCHW: Tensor, target_RCHW: Tensor, context_RLD: Tensor,
        places: Mapping[str, Tensor],
    ) -> LossTerms:  # fmt: skip
        """Equation 6. Contextual embeddings are ``context_RLD`` at ``places`` (``TextStates.words``)."""
        settings, terms = self.attractor, {}
        masks = {"subject": lesson.mask_R1HW, "background": 1 - lesson.mask_R1HW, "joint": None}
        for number, (pool, mask_R1HW) in enumerate(masks.items()):
            chosen_R = (lesson.pool_R == number) & lesson.used_R
            terms[pool] = masked_loss(pred_RCHW, target_RCHW, mask_R1HW, chosen_R, settings.mask_norm)
        # CLIP is causal: in a joint prompt A* has read v* already, so each is taken from its own pool.
        v_KD = word_states(context_RLD, [places[self.word]], lesson.pool_R == 0)
        words = sorted(set(self.words))
        a_KD = word_states(
            context_RLD, [places[word] for word in words if word in places], lesson.pool_R == 1
        )
        terms["contrastive"] = info_nce(v_KD, a_KD, settings.temperature, normalize=settings.normalize)
        total = sum(
            (getattr(settings, f"{pool}_weight") * terms[pool] for pool in POOLS),
            lesson.contrast * terms["contrastive"],
        )
        return LossTerms(total, terms)


def word_states(context_RLD: Tensor, places: Sequence[Tensor], wanted_R: Tensor) -> Tensor:
    """The encoded state of a word in each wanted row, (K, D): the mean over its vectors."""
    row_K, position_K = torch.cat(list(places)).to(context_RLD.device).T
    sums_RD = torch.zeros_like(context_RLD[:, 0]).index_add(0, row_K, context_RLD[row_K, position_K])
    count_R = torch.zeros_like(context_RLD[:, 0, 0]).index_add(
        0, row_K, torch.ones_like(row_K, dtype=sums_RD.dtype)
    )
    there_R = wanted_R & (count_R > 0)
    return sums_RD[there_R] / count_R[there_R, None]


def require_pairs(attractor: Attractor, subject: Subject, batch_size: int) -> None:
    """Warn when no step can have two subject samples: then there is no contrastive loss."""
    if attractor.contrastive_weight and attractor.schedule != "zero" and min(
        batch_size, len(subject.photos)) < 2:  # fmt: skip
        log.warning(
            "The attractor's contrastive loss needs two photos in a batch (there are %d, in batches of %d): "
            "it is left out.", len(subject.photos), batch_size,
        )  # fmt: skip


def require_squares(attractor: Attractor | None, crop: Crop) -> None:
    """The lessons of a step share one mask size."""
    require(attractor is None or crop != "bucket", "crop", crop, "center, random or resize with an attractor")


def no_division() -> LikenessError:
    """Why a batch stays whole: the contrastive loss compares its photos with one another."""
    return LikenessError(
        "With an attractor the rows of a batch cannot be shared between processes",
        expected="an accumulation that the number of processes divides",
        fix="Change accumulation, or train in one process.",
    )
