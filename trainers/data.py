"""What a step is made of: rows drawn from cached latents, with their noise and timesteps.

Every draw is a function of (seed, purpose, index), so that a resumed run needs its step and nothing else.
"""
# Shapes: B batch, N cached views, C latent channels, H W latent size, L tokens, D text width.

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ..backbones.base import Backbone, Latents, TextStates
from ..core.randomness import generator, normal
from ..subjects.subject import Photo, Subject
from ..subjects.views import Crop, load_view, view_size
from .events import Phase

RANDOM_VIEWS = 8  # crops cached per photo when crops are random
CHUNK = 8  # pictures encoded at once


@dataclass(frozen=True)
class LatentCache:
    """The VAE's posterior of every view, on the training device; views may be of several sizes.

    Mean and std of view i are (C, H, W), ``source_N[i]`` is its picture.
    """

    mean_N: tuple[Tensor, ...]
    std_N: tuple[Tensor, ...]
    source_N: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.source_N)

    def joined(self, other: LatentCache) -> LatentCache:
        """Both, one behind the other; the sources of ``other`` are counted on."""
        offset = max(self.source_N) + 1
        return LatentCache(
            self.mean_N + other.mean_N,
            self.std_N + other.std_N,
            self.source_N + tuple(offset + s for s in other.source_N),
        )

    def sizes(self) -> list[tuple[int, int]]:
        """Height and width in cells, each that occurs once."""
        return sorted({self.size(view) for view in range(len(self))})

    def size(self, view: int) -> tuple[int, int]:
        _, height, width = self.mean_N[view].shape
        return height, width

    def of_size(self, size: tuple[int, int], views: Iterable[int]) -> list[int]:
        """Those of ``views`` that have the size."""
        return [view for view in views if self.size(view) == size]


@dataclass(frozen=True)
class Rows:
    """One batch before the model has seen it. ``views_B`` says which cached view each row is."""

    latents_BCHW: Tensor
    noise_BCHW: Tensor
    t_B: Tensor
    views_B: tuple[int, ...]

    def part(self, rows: slice) -> Rows:
        return Rows(self.latents_BCHW[rows], self.noise_BCHW[rows], self.t_B[rows], self.views_B[rows])


def name_subject(caption: str, word: str, subject: Subject) -> str:
    """The caption with ``word`` where {} stands, or else where the subject is named; or else in front."""
    if "{}" in caption:
        return caption.replace("{}", word)
    for known in (f"{subject.identifier} {subject.class_noun}", subject.class_noun, subject.identifier):
        named = re.compile(rf"\b{re.escape(known)}\b", re.IGNORECASE)
        if named.search(caption):
            return named.sub(lambda _: word, caption, count=1)
    return f"{word}, {caption}"


def epoch_of(cache: LatentCache, photos: Sequence[Photo]) -> list[int]:
    """The views that one round shows: each as often as its photo's ``repeats`` says."""
    return [view for view, number in enumerate(cache.source_N) for _ in range(photos[number].repeats)]


def photo_views(
    photos: Sequence[Photo], backbone: Backbone, *, crop: Crop, flip: bool, seed: int
) -> list[tuple[int, Tensor]]:
    """(photo's number, view (3, H, W) in [-1, 1]): one per photo, more where crops differ, each also
    mirrored with ``flip``. Squares of the model's native size, or with "bucket" rectangles of about
    as many pixels.

    Differs: the papers' code draws a crop at every step; here a few are drawn once, and their latents kept.
    """
    return [(number, image) for number, image, _ in _views(photos, backbone, crop, flip, seed)]


def photo_masks(
    photos: Sequence[Photo], backbone: Backbone, *, crop: Crop, flip: bool, seed: int
) -> list[Tensor]:
    """The mask (1, H, W) in [0, 1] of every view that ``photo_views`` makes; ones where a photo has none."""
    return [mask for _, _, mask in _views(photos, backbone, crop, flip, seed)]


def _views(
    photos: Sequence[Photo], backbone: Backbone, crop: Crop, flip: bool, seed: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    for number, photo in enumerate(photos):
        several = crop == "random" and photo.width != photo.height
        width, height = view_size(photo, backbone.image_size, crop=crop, step=backbone.size_step)
        for k in range(RANDOM_VIEWS if several else 1):
            stream = generator(seed, "crop", photo.sha256, k)
            image, mask = load_view(photo, width, height, crop=crop, generator=stream)
            yield number, image, mask
            if flip:
                yield number, image.flip(-1), mask.flip(-1)


def cache_latents(
    backbone: Backbone, views: Sequence[tuple[int, Tensor]]
) -> Generator[Phase, None, LatentCache]:
    """Encode every view once. Yields a Phase per chunk."""
    mean_N: list[Tensor] = []
    std_N: list[Tensor] = []
    yield Phase("caching", 0, len(views))
    for _, group in groupby([image for _, image in views], key=lambda image: image.shape):
        alike = list(group)
        for start in range(0, len(alike), CHUNK):
            with torch.no_grad():
                latents = backbone.encode_images(torch.stack(alike[start : start + CHUNK]))
            mean_N += latents.mean.float()
            std_N += latents.std.float()
            yield Phase("caching", len(mean_N), len(views))
    return LatentCache(tuple(mean_N), tuple(std_N), tuple(number for number, _ in views))


def cache_texts(backbone: Backbone, prompts: Sequence[str]) -> TextStates:
    """The states of every prompt, each different one encoded once, in the order of ``prompts``."""
    unique = sorted(set(prompts))
    with torch.no_grad():
        encoded = [backbone.encode_prompts(unique[i : i + CHUNK]) for i in range(0, len(unique), CHUNK)]
    pooled = [text.pooled for text in encoded if text.pooled is not None]
    states = TextStates(torch.cat([text.context for text in encoded]), torch.cat(pooled) if pooled else None)
    return pick(states, [unique.index(prompt) for prompt in prompts])


def pick(texts: TextStates, rows: Sequence[int]) -> TextStates:
    """Some rows of cached text states."""
    index = torch.tensor(rows, device=texts.context.device)
    return TextStates(texts.context[index], None if texts.pooled is None else texts.pooled[index])


def part_of(texts: TextStates, rows: slice) -> TextStates:
    """Some rows of a batch's text states."""
    return TextStates(texts.context[rows], None if texts.pooled is None else texts.pooled[rows])


def shuffled(things: Sequence[int], batch: int, index: int, seed: int, purpose: str) -> list[int]:
    """Batch ``index`` of an endless walk over ``things`` that is shuffled anew in every round."""
    chosen = []
    orders: dict[int, list[int]] = {}
    for position in range(index * batch, (index + 1) * batch):
        number, place = divmod(position, len(things))
        if number not in orders:
            orders[number] = torch.randperm(len(things), generator=generator(seed, purpose, number)).tolist()
        chosen.append(things[orders[number][place]])
    return chosen


def drawn_views(
    cache: LatentCache, views: Sequence[int], batch: int, index: int, seed: int, purpose: str
) -> list[int]:
    """Batch ``index`` of a walk as ``shuffled``. Where sizes differ, a batch has that of one view, whose turn
    it is in such a walk: every view leads equally often."""
    if len({cache.size(view) for view in views}) == 1:
        return shuffled(views, batch, index, seed, purpose)
    (leader,) = shuffled(views, 1, index, seed, purpose)
    height, width = size = cache.size(leader)
    followers = cache.of_size(size, views)
    return [leader, *shuffled(followers, batch - 1, index, seed, f"{purpose}, {width} by {height}")]


def draw_rows(backbone: Backbone, cache: LatentCache, views: Sequence[int], seed: int, index: int) -> Rows:
    """Fresh posterior sample, noise and timestep for each chosen view."""
    chosen = Latents(*(torch.stack([of_N[view] for view in views]) for of_N in (cache.mean_N, cache.std_N)))
    shape = chosen.mean.shape
    device = chosen.mean.device
    timesteps = torch.randint(
        0, backbone.num_train_timesteps, (len(views),), generator=generator(seed, "timestep", index)
    )
    return Rows(
        latents_BCHW=chosen.sample(normal(shape, seed, "posterior", index).to(device)),
        noise_BCHW=normal(shape, seed, "noise", index).to(device),
        t_B=timesteps.to(device),
        views_B=tuple(views),
    )
