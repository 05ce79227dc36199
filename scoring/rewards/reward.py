"""What a reward is: pictures and prompts in, one number each out; the higher the better.

Every reward has this one signature, so that they plug together. Gradients reach the pictures where the model
is differentiable and the pictures ask for them; then they are resized as tensors. Otherwise they are scored
as the 8-bit pictures that their PNG files would hold, in batches.
"""
# Shapes: B pictures, H W size in pixels.

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from ...core.errors import LikenessError
from ..encoders import Preprocessing

log = logging.getLogger(__name__)


class Reward(Protocol):
    """``id`` and ``weights_hash`` go into every result. ``label`` heads a column."""

    id: str
    label: str
    weights_hash: str
    differentiable: bool

    def __call__(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Pictures in [0, 1] and the prompt of each to (B,), fp32 on the model's device."""
        ...


@dataclass(frozen=True, kw_only=True)
class RewardSpec:
    """Which reward and where its weights are: the small handle that a graph passes around."""

    name: str = "auto"  # "auto": toybox_preference for a Toybox model, else image_reward
    source: str = ""  # a file or folder on this machine; "": looked for where models are kept
    # Differs: the paper is silent; identifiers such as "sks" are noise to a text encoder that never met them
    strip_identifier: bool = True
    batch_size: int = 8  # pictures at once


@dataclass(kw_only=True)
class NetReward:
    """A reward that is one network on prepared pixels; satisfies ``Reward``.

    ``net`` maps normalised pixels (B, 3, h, w) and the prompts to (B,).
    """

    id: str
    label: str
    weights_hash: str
    prepare: Preprocessing
    net: Callable[[Tensor, list[str]], Tensor]
    device: str
    batch_size: int = 8
    differentiable: bool = True

    def __call__(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        same_length(images_B3HW, prompts)
        if images_B3HW.requires_grad and torch.is_grad_enabled():
            pixels = self.prepare.differentiable(images_B3HW.to(self.device))
            return self.net(pixels, list(prompts)).float()
        with torch.no_grad():
            rows = range(0, len(prompts), self.batch_size)
            scores = [self._batch(images_B3HW, prompts, slice(i, i + self.batch_size)) for i in rows]
        return torch.cat(scores)

    def _batch(self, images_B3HW: Tensor, prompts: Sequence[str], rows: slice) -> Tensor:
        return self.net(self.prepare(images_B3HW[rows]).to(self.device), list(prompts[rows])).float()


def same_length(images: Tensor, prompts: Sequence[str]) -> None:
    """LikenessError unless every picture has a prompt."""
    if len(images) != len(prompts) or len(prompts) == 0:
        raise LikenessError(
            f"{len(images)} pictures came with {len(prompts)} prompts to be scored",
            expected="one prompt for each picture, and at least one",
        )


def checked_scores(reward: Reward, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
    """``reward``'s scores on the CPU, (B,). LikenessError when it gives another count or no numbers."""
    scores = torch.as_tensor(reward(images_B3HW, prompts)).detach().float().cpu()
    if scores.shape != (len(prompts),):
        raise LikenessError(
            f"The reward {reward.label} gave scores of the shape {tuple(scores.shape)} for "
            f"{len(prompts)} pictures",
            expected=f"one number for each picture, ({len(prompts)},)",
        )
    bad = [n for n, score in enumerate(scores.tolist()) if score != score or abs(score) == float("inf")]
    if bad:
        raise LikenessError(
            f"The reward {reward.label} gave {scores[bad[0]].item()} for picture {bad[0] + 1} of "
            f"{len(prompts)} ({prompts[bad[0]]!r})",
            expected="finite numbers",
            fix="Use fp32 for the reward, or another reward; nothing was learned from these pictures.",
        )
    return scores


def score_stream(
    reward: Reward, pairs: Iterable[tuple[Tensor, str]], *, batch_size: int = 8
) -> Iterator[float]:
    """Scores of (picture (3, H, W), prompt) pairs in their order; memory holds one batch of them."""
    stream = iter(pairs)
    while batch := list(islice(stream, batch_size)):
        images_B3HW = torch.stack([image for image, _ in batch])
        yield from checked_scores(reward, images_B3HW, [prompt for _, prompt in batch]).tolist()
