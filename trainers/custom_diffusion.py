"""Custom Diffusion (Kumari et al. 2022, arXiv:2212.04488): a few subjects at once, each a new word.

Only the keys and values of cross-attention train, and one token row per subject (section 3.2). Each photo has
its own caption, in which words such as "<rex> dog" stand; scenes of several subjects train them jointly.

    L = mean_i  sum(m_i (eps - eps_theta)^2) / sum(m_i)  +  weight * |eps_prior - eps_theta|^2

where m_i leaves out what augmentation put around photo i.
Differs: the authors' code optimises every row of the vocabulary, whose weight decay slowly shrinks words that
were never trained; rows are parameters of their own here.
"""
# Shapes: B batch (instance rows, then class rows), C latent channels, H W latent size, L tokens, D text
# width,
# O output features, S picture edge in pixels.

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.base import Backbone, BaseModel
from ..backbones.tokens import initial_row
from ..concepts.concept import Artifact
from ..concepts.words import bundled_tensors
from ..core.errors import LikenessError
from ..core.randomness import generator
from ..scoring.encoders import Encoders
from ..subjects.subject import Photo, Subject
from ..subjects.views import Crop, load_square
from .data import (
    LatentCache,
    Rows,
    cache_latents,
    draw_rows,
    drawn_views,
    epoch_of,
    name_subject,
    photo_views,
    shuffled,
)
from .entry import learn
from .events import Event, Phase
from .method import LoopConfig, require
from .monitor import HeldOutMonitor
from .objectives import LossTerms, squared_error
from .prior import PriorPreservation, class_images, load_class_images
from .textual_inversion import placeholder

# Rare tokens of CLIP's vocabulary: what the authors' diffusers code starts new words from.
# Differs: their first code gives them out from the last word to the first, and reads another row for ucd.
RARE = ("ktn", "pll", "ucd")
FAR, NEAR = (
    ("a far away ", "very small "),
    ("zoomed in ", "close up "),
)  # the reference's words for its scales
_KV = re.compile(r".*\.attn2\.(to_k|to_v)")
_CROSS = re.compile(r".*\.attn2\.(to_q|to_k|to_v|to_out\.0)")


@dataclass(frozen=True, kw_only=True)
class Word:
    """A subject in prompts: "<rex> dog". ``initial`` is what the token starts from; empty: a rare token of
    CLIP's vocabulary, or the noun where the vocabulary is another."""

    token: str
    noun: str
    initial: str = ""

    @property
    def words(self) -> str:
        return f"{self.token} {self.noun}".strip()


@dataclass(frozen=True, kw_only=True)
class CustomDiffusionConfig(LoopConfig):
    steps: int = 500  # the authors: 250 on 2 GPUs for one subject, 500 for two; twice that on one GPU
    batch_size: int = 2  # the authors' per GPU
    learning_rate: float = 4e-5  # the authors: 1e-5 times batch, and times 2 with class images
    token_rate: float = 1.0  # times the learning rate, of the words' rows; the authors have one rate
    max_grad_norm: float = 0.0  # the authors' code does not clip
    train: Literal["kv", "cross_attention"] = "kv"  # the paper; "cross_attention" is the code's crossattn
    words: tuple[Word, ...] = ()  # of joint training; empty: one, of the subject
    prompt: str = "photo of a {}"  # the authors', of photos without a caption
    use_captions: bool = True  # Gen4Gen trains on captions; the authors' code on the prompt
    augment: bool = True  # the authors': smaller, larger, with words that say so
    flip: bool = True  # the authors': half of the views
    crop: Crop = "center"  # Differs: the authors squeeze a photo to a square
    match_reference: bool = False  # the authors' bugs, too: see ``masked_loss`` and ``live_rows``

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.train in ("kv", "cross_attention"), "train", self.train, "kv or cross_attention")
        require(0 < self.token_rate <= 1000, "token_rate", self.token_rate, "above 0, at most 1000")
        require(
            self.crop != "bucket" or not self.augment,
            "crop", self.crop, "center, random or resize where augment is on: it works on squares",
        )  # fmt: skip
        require("{}" in self.prompt, "prompt", self.prompt, "a text with {} where the subject stands")
        tokens = [word.token for word in self.words]
        require(len(set(tokens)) == len(tokens), "words", tokens, "a token of its own for every subject")

    def rate_factor(self, name: str) -> float:
        return self.token_rate if name.startswith("rows.") else 1.0

    @classmethod
    def paper(cls, **changes: Any) -> CustomDiffusionConfig:
        """The authors' settings for one GPU."""
        return cls(**{"use_captions": False, **changes})

    @classmethod
    def practical(cls, family: str = "toybox", **changes: Any) -> CustomDiffusionConfig:
        """Quick and strong for a family; captions are used, and latents are cached."""
        return cls(**{**PRACTICAL.get(family, PRACTICAL["sd1"]), **changes})


PRACTICAL: Mapping[str, Mapping[str, Any]] = {
    "toybox": {
        "steps": 400,
        "batch_size": 8,
        "learning_rate": 1e-4,  # for separate photos; scenes bear 1e-3, a token_rate of 3 and cross_attention
        "token_rate": 30.0,
        "schedule": "cosine",
        "weight_decay": 0.0,
        "augment": False,
        "flip": False,
        "max_grad_norm": 1.0,
    },
    "sd1": {"steps": 500, "batch_size": 2, "learning_rate": 4e-5, "flip": False},
}


def masked_loss(
    pred_BCHW: Tensor, target_BCHW: Tensor, mask_B1HW: Tensor, *, match_reference: bool = False
) -> Tensor:
    """Each row's mean squared error inside its mask, averaged over rows.

    ``match_reference`` divides by the mask's sum without counting channels, as the authors' code does: with C
    channels the loss is C times as large beside the prior's.
    """
    error_BCHW = mask_B1HW * (pred_BCHW.float() - target_BCHW.float()).square()
    count_B = mask_B1HW.flatten(1).sum(1).clamp(min=1e-8)
    channels = 1 if match_reference else pred_BCHW.shape[1]
    return (error_BCHW.flatten(1).sum(1) / (channels * count_B)).mean()


def augmented(image_3SS: Tensor, dice: torch.Generator, *, cell: int) -> tuple[Tensor, Tensor, str]:
    """The authors' augmentation: the view, its mask (1, S/cell, S/cell), and words for the caption's front.

    In two of three cases the photo is scaled to between a third and all of the canvas, else to 1.2 to 1.4 of
    it. Below 0.6 it lies somewhere on grey, and the mask leaves a latent pixel of its edge out; above 1 a
    part is cut; between, it stays as it is.
    """
    size = image_3SS.shape[-1]
    edge = size // cell
    whole_1HW = torch.ones(1, edge, edge)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, max(high, low + 1), (1,), generator=dice))

    small = draw(0, 3) < 2
    scale = draw(size // 3, size + 1) if small else draw(int(1.2 * size), int(1.4 * size) + 1)
    scale += scale % 2
    word = draw(0, 2)
    if scale > size:
        top, left = draw(0, scale - size + 1), draw(0, scale - size + 1)
        large = _resized(image_3SS, scale)
        return large[:, top : top + size, left : left + size].contiguous(), whole_1HW, NEAR[word]
    if scale >= 0.6 * size:
        return image_3SS, whole_1HW, ""
    top, left = draw(0, size - scale + 1), draw(0, size - scale + 1)
    canvas_3SS = torch.zeros_like(image_3SS)
    canvas_3SS[:, top : top + scale, left : left + scale] = _resized(image_3SS, scale)
    mask_1HW = torch.zeros(1, edge, edge)
    rows = slice(top // cell + 1, max((top + scale) // cell - 1, top // cell + 2))
    columns = slice(left // cell + 1, max((left + scale) // cell - 1, left // cell + 2))
    mask_1HW[:, rows, columns] = 1
    return canvas_3SS, mask_1HW, FAR[word]


def _resized(image_3SS: Tensor, size: int) -> Tensor:
    return F.interpolate(image_3SS[None], (size, size), mode="bilinear", antialias=True)[0]


# --- what trains --------------------------------------------------------------------------------------


class TrainedLinear:
    """A linear layer's own weight in its place, as a forward hook: the layer is not touched.

    ``detach_first`` keeps the first token (the start sign) from learning: every prompt has it, and what it
    learned would show everywhere.
    """

    def __init__(self, layer: nn.Module, *, detach_first: bool, device: Any) -> None:
        base = layer.weight
        assert isinstance(base, Tensor)
        self.weight = nn.Parameter(base.detach().float().clone().to(device))
        self.detach_first = detach_first

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        x_BLD = args[0]
        bias = getattr(layer, "bias", None)
        own_BLO = F.linear(x_BLD, self.weight.to(x_BLD.dtype), bias)
        if not self.detach_first:
            return own_BLO
        return torch.cat([own_BLO[:, :1].detach(), own_BLO[:, 1:]], dim=1)


@dataclass(frozen=True)
class Batch:
    rows: Rows
    prompts: list[str]
    mask_B1HW: Tensor  # of the instance rows
    num_instance: int


class CustomDiffusion:
    """The method for ``loop.train``. The base model carries hooks between ``prepare`` and ``close``."""

    def __init__(
        self,
        backbone: Backbone,
        subject: Subject,
        config: CustomDiffusionConfig,
        *,
        seed: int,
        prior: PriorPreservation | None,
        base: BaseModel,
        runs_root: Path,
    ) -> None:
        self.backbone, self.subject, self.config, self.seed = backbone, subject, config, seed
        self.prior, self.base, self.runs_root = prior, base, runs_root
        self.words = config.words or (Word(token=placeholder(subject), noun=subject.class_noun),)
        self.trigger = " and ".join(word.words for word in self.words)
        self.rows: dict[str, nn.Parameter] = {}
        for number, word in enumerate(self.words):
            refuse_known(backbone, word.token)
            start_D = first_row(backbone, word, number)
            self.rows[word.token] = nn.Parameter(start_D[None].clone().to(backbone.device))
        self.layers: dict[str, TrainedLinear] = {}
        self.handles: list[Any] = []

    def parameters(self) -> dict[str, nn.Parameter]:
        weights = {f"unet.{name}.weight": layer.weight for name, layer in self.layers.items()}
        return {**weights, **{f"rows.{token}": row for token, row in self.rows.items()}}

    # --- once -------------------------------------------------------------------------------------
    def prepare(self) -> Iterator[Phase]:
        """Latents of the photos (unless they are augmented) and of the class images; then the hooks."""
        config, photos = self.config, self.subject.photos
        if config.augment:
            yield Phase("caching", 0, 1)
            self.sources: tuple[int, ...] = tuple(range(len(photos)))
            self.cache: LatentCache | None = None
            self.epoch = [n for n, photo in enumerate(photos) for _ in range(photo.repeats)]
            yield Phase("caching", 1, 1)
        else:
            views = photo_views(photos, self.backbone, crop=config.crop, flip=config.flip, seed=self.seed)
            self.cache = yield from cache_latents(self.backbone, views)
            self.sources = self.cache.source_N
            self.epoch = epoch_of(self.cache, photos)
        self.class_cache: LatentCache | None = None
        self.class_prompts: list[str] = []
        if self.prior is not None:
            yield from self.prepare_prior(self.prior)
        self.put_on()

    def prepare_prior(self, prior: PriorPreservation) -> Generator[Phase, None, None]:
        cell = self.backbone.latent_scale
        edge = self.backbone.image_size // cell
        sizes = self.cache.sizes() if self.cache is not None else [(edge, edge)]
        cache: LatentCache | None = None
        for noun in dict.fromkeys(word.noun for word in self.words if word.noun):
            paths = yield from class_images(
                prior, self.backbone, noun, runs_root=self.runs_root, dtype=self.base.dtype
            )
            own = yield from cache_latents(self.backbone, load_class_images(paths, sizes, cell))
            cache = own if cache is None else cache.joined(own)
            self.class_prompts += [prior.class_prompt(noun)] * len(own)
        self.class_cache = cache

    def put_on(self) -> None:
        pattern = _KV if self.config.train == "kv" else _CROSS
        for name, layer in self.backbone.module("unet").named_modules():
            if pattern.fullmatch(name):
                own = TrainedLinear(
                    layer, detach_first=name.endswith(("to_k", "to_v")), device=self.backbone.device
                )
                self.layers[name] = own
                self.handles.append(layer.register_forward_hook(own))

    # --- every step -------------------------------------------------------------------------------
    def batch(self, index: int) -> Batch:
        num = self.config.batch_size
        if self.cache is None:
            views = shuffled(self.epoch, num, index, self.seed, "photo")
        else:
            views = drawn_views(self.cache, self.epoch, num, index, self.seed, "photo")
        rows, prompts, mask_B1HW = self.instance_rows(views, index)
        if self.class_cache is not None:
            height, width = rows.latents_BCHW.shape[2:]
            alike = self.class_cache.of_size((height, width), range(len(self.class_cache)))
            chosen = shuffled(alike, num, index, self.seed, "class image")
            more = draw_rows(self.backbone, self.class_cache, chosen, self.seed + 1, index)
            rows = joined(rows, more)
            prompts += [self.class_prompts[view] for view in chosen]
        return Batch(rows, prompts, mask_B1HW, num)

    def instance_rows(self, views: Sequence[int], index: int) -> tuple[Rows, list[str], Tensor]:
        prompts = [self.prompt(self.subject.photos[self.sources[view]]) for view in views]
        if self.cache is not None:
            rows = draw_rows(self.backbone, self.cache, views, self.seed, index)
            return rows, prompts, torch.ones_like(rows.latents_BCHW[:, :1])
        parts = [self.augmented_view(view, index, place) for place, view in enumerate(views)]
        with torch.no_grad():
            latents = self.backbone.encode_images(torch.stack([image for image, _, _ in parts]))
        cache = LatentCache(tuple(latents.mean), tuple(latents.std), tuple(range(len(views))))
        rows = draw_rows(self.backbone, cache, range(len(views)), self.seed, index)
        mask_B1HW = torch.stack([mask for _, mask, _ in parts]).to(rows.latents_BCHW.device)
        return rows, [words + p for (_, _, words), p in zip(parts, prompts, strict=True)], mask_B1HW

    def augmented_view(self, view: int, index: int, place: int) -> tuple[Tensor, Tensor, str]:
        config, dice = self.config, generator(self.seed, "augment", index, place)
        photo = self.subject.photos[self.sources[view]]
        image_3SS, _ = load_square(
            photo, self.backbone.image_size, crop=config.crop, flip=config.flip, generator=dice
        )
        return augmented(image_3SS, dice, cell=self.backbone.latent_scale)

    def prompt(self, photo: Photo) -> str:
        """The photo's caption with the words in it; of joint training, as it was written."""
        caption = photo.caption if self.config.use_captions or self.config.words else None
        if caption and any(word.token in caption for word in self.words):
            return caption
        return name_subject(caption or self.config.prompt, self.words[0].words, self.subject)

    def part(self, batch: Batch, rows: slice) -> Batch:
        mask_B1HW = batch.mask_B1HW[rows]
        return Batch(batch.rows.part(rows), batch.prompts[rows], mask_B1HW, len(mask_B1HW))

    def loss(self, batch: Batch) -> LossTerms:
        model, rows, num = self.backbone, batch.rows, batch.num_instance
        text = model.encode_prompts(batch.prompts, embeddings=self.live_rows())
        noisy_BCHW = model.add_noise(rows.latents_BCHW, rows.noise_BCHW, rows.t_B)
        pred_BCHW = model.predict(noisy_BCHW, rows.t_B, text)
        target_BCHW = model.target(rows.latents_BCHW, rows.noise_BCHW, rows.t_B)
        instance = masked_loss(
            pred_BCHW[:num], target_BCHW[:num], batch.mask_B1HW, match_reference=self.config.match_reference
        )
        if self.prior is None:
            return LossTerms(instance, {"instance": instance})
        prior = squared_error(pred_BCHW[num:], target_BCHW[num:]).mean()
        return LossTerms(instance + self.prior.weight * prior, {"instance": instance, "prior": prior})

    def live_rows(self) -> dict[str, Tensor]:
        """The rows that prompts see. ``match_reference``: of several the last gets no gradient, an off-by-one
        of the authors' diffusers script."""
        rows: dict[str, Tensor] = dict(self.rows)
        if self.config.match_reference and len(rows) > 1:
            last = self.words[-1].token
            rows[last] = rows[last].detach() + 0 * rows[last]
        return rows

    def after_step(self) -> None:
        """Nothing."""

    # --- the result -------------------------------------------------------------------------------
    def learned(self) -> Backbone:
        return self.backbone.with_embeddings(
            {token: row.detach().clone() for token, row in self.rows.items()}
        )

    def export(self) -> Artifact:
        base = dict(self.backbone.module("unet").named_parameters())
        deltas = {
            f"unet.{name}.weight": (layer.weight.detach() - base[f"{name}.weight"].detach().float()).cpu()
            for name, layer in self.layers.items()
        }
        rows = bundled_tensors(self.backbone, self.rows)
        return Artifact(
            kind="delta",
            tensors={**deltas, **rows},
            trigger=self.trigger,
            class_noun=" and ".join(word.noun for word in self.words),
            metadata={"words": [[word.token, word.noun] for word in self.words]},
        )

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []


def joined(first: Rows, second: Rows) -> Rows:
    """One batch behind the other."""
    return Rows(
        torch.cat([first.latents_BCHW, second.latents_BCHW]),
        torch.cat([first.noise_BCHW, second.noise_BCHW]),
        torch.cat([first.t_B, second.t_B]),
        first.views_B + second.views_B,
    )


def refuse_known(backbone: Backbone, token: str) -> None:
    """LikenessError for a token that the model knows already."""
    if token in backbone.embeddings or len(backbone.token_ids(token)) == 1:
        raise LikenessError(
            f"The placeholder {token} is in the model's vocabulary already.",
            expected="a word that the model does not know",
            fix="Give the subject another name.",
        )


def first_row(backbone: Backbone, word: Word, number: int) -> Tensor:
    """The row (D,) that a word starts from."""
    if word.initial:
        return initial_row(backbone, word.initial)
    rare_ND = backbone.token_embedding(RARE[number % len(RARE)])
    if len(rare_ND) == 1:
        return rare_ND[0]
    return initial_row(backbone, word.noun or "photo").float()


def joint_subject(
    subjects: Sequence[Subject], *, prompt: str = "photo of a {}"
) -> tuple[Subject, tuple[Word, ...]]:
    """Separate photos of several subjects as one set to train on together, and its words.

    Raises LikenessError for none, or two of one name.
    """
    words = tuple(Word(token=placeholder(s), noun=s.class_noun) for s in subjects)
    if not subjects or len({word.token for word in words}) < len(words):
        raise LikenessError(
            f"{len(subjects)} subjects cannot be trained together", expected="one or more, each with its name"
        )
    photos = tuple(
        replace(photo, caption=name_subject(photo.caption or prompt, word.words, subject))
        for subject, word in zip(subjects, words, strict=True)
        for photo in subject.photos
    )
    return joint_material("+".join(s.name for s in subjects), words, photos), words


def joint_material(name: str, words: Sequence[Word], photos: Sequence[Photo]) -> Subject:
    """Photos whose captions hold the words already, such as a scene dataset's, as what ``learn`` takes."""
    if not photos:
        raise LikenessError("There are no pictures to learn from", expected="at least one photo or scene")
    return Subject(
        name=name,
        class_noun=" and ".join(word.noun for word in words),
        identifier=words[0].token,
        photos=tuple(photos),
    )


def train_custom_diffusion(
    base: BaseModel,
    subject: Subject,
    config: CustomDiffusionConfig,
    *,
    runs_root: Path,
    seed: int = 0,
    prior: PriorPreservation | None = None,
    monitor: HeldOutMonitor | None = None,
    encoders: Encoders | None = None,
) -> Generator[Event, None, None]:
    """Learn one subject, or with ``config.words`` several. Ends with ``Done``, whose concept is a delta of
    cross-attention with the words' embeddings in the same file.

    The monitor judges one subject: LikenessError when it is asked to judge several.
    """
    if monitor is not None and len(config.words) > 1:
        raise LikenessError(
            "The held-out monitor judges one subject, and several are trained together",
            fix="Unplug it, and score the result with Score Composition",
        )

    told: dict[str, Any] = {"subject": subject, "config": config, "seed": seed, "prior": prior, "base": base}
    return learn(
        "custom_diffusion",
        partial(CustomDiffusion, **told, runs_root=Path(runs_root)),
        base,
        subject,
        config,
        runs_root=Path(runs_root),
        seed=seed,
        monitor=monitor,
        encoders=encoders,
        prior=prior,
    )
