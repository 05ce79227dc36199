"""The preference model, in ImageReward's role: pairs ranked by the renderer's own truth.

    L = -log sigmoid(score(winner, prompt) - score(loser, prompt))     (ImageReward, arXiv:2304.05977, eq. 1)

The winner is the picture that the prompt words; the loser is the same picture with one to three of its facts
changed: noun, colour, scene, accessory or, most often, what it does. Scores come from a small net on frozen
CLIP states.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import captions, models, render, world
from ..nets import Preference
from . import data
from .judge import save
from .loop import Schedule, device

NUM_PAIRS = 16_000
CHANGES = ("act", "act", "act", "accessory", "scene", "noun", "look")


@dataclass
class PreferencePart:
    state_dir: Path
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=3000, batch=128, lr=1e-3, warmup=50, weight_decay=0.05, ema=0.99, save_every=250
        )
    )
    name: str = "preference"
    exported: str = "preference/model.safetensors"
    num_pairs: int = NUM_PAIRS

    def build(self) -> nn.Module:
        self.winners, self.losers, self.texts = cached_states(self.state_dir, self.num_pairs)
        return Preference(self.texts.shape[1])

    def loss(self, model: nn.Module, step: int) -> dict[str, Tensor]:
        picks = torch.from_numpy(
            data.batch_indices(self.schedule.seed + 6, step, self.schedule.batch, len(self.texts))
        )
        better, worse, text = (t[picks].to(device()) for t in (self.winners, self.losers, self.texts))
        margin = model(better, text) - model(worse, text)
        return {"loss": -F.logsigmoid(margin).mean(), "right": (margin.detach() > 0).float().mean()}

    def export(self, model: nn.Module, weights_dir: Path) -> None:
        save(model, weights_dir / "preference")


def pair(number: int, split: str = "train") -> tuple[world.Picture, world.Picture]:
    """A picture with all told that words can tell, and a worse one for its caption."""
    rng = random.Random(f"pair|{split}|{number}")
    for _ in range(60):
        picture = world.fully_named(world.sample_picture(rng.randrange(1 << 40), split=split))
        if world.caption_reserved(picture) == (split == "eval") and len(picture.things) == 1:
            break
    return picture, worsen(picture, rng)


def worsen(picture: world.Picture, rng: random.Random) -> world.Picture:
    """One to three facts that the caption tells, changed."""
    worse = picture
    while captions.caption(worse) == captions.caption(picture):
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            worse = _CHANGES[rng.choice(CHANGES)](worse, rng)
        worse = world.fully_named(worse)
    return worse


def _other(rng: random.Random, options: object, now: str) -> str:
    return rng.choice([o for o in options if o != now])  # type: ignore[attr-defined]


def _first(picture: world.Picture, **changes: object) -> world.Picture:
    return replace(picture, things=(replace(picture.things[0], **changes), *picture.things[1:]))  # type: ignore[arg-type]


def _change_act(picture: world.Picture, rng: random.Random) -> world.Picture:
    first = picture.things[0]
    if first.action != "none" or rng.random() < 0.5:
        return _first(picture, action=_other(rng, world.ACTIONS, first.action), pose="standing")
    return _first(picture, pose=_other(rng, world.POSES, first.pose))


def _change_look(picture: world.Picture, rng: random.Random) -> world.Picture:
    look = picture.things[0].look
    return _first(picture, look=replace(look, colour=_other(rng, world.COLOURS, look.colour)))


_CHANGES = {
    "act": _change_act,
    "look": _change_look,
    "scene": lambda p, rng: replace(p, scene=_other(rng, world.SCENES, p.scene)),
    "noun": lambda p, rng: _first(p, noun=_other(rng, world.NOUNS, p.things[0].noun)),
    "accessory": lambda p, rng: _first(p, accessory=_other(rng, world.ACCESSORIES, p.things[0].accessory)),
}


def cached_states(state_dir: Path, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """CLIP's image states of winners and losers and its text states, float (count, D)."""
    path = state_dir / f"preference-{count}.pt"
    if not path.exists():
        clip = models.load_clip(state_dir / "weights").to(device())
        rows = [states(clip, [pair(n) for n in range(i, min(i + 64, count))]) for i in range(0, count, 64)]
        torch.save(tuple(torch.cat(column) for column in zip(*rows, strict=True)), path)
    return tuple(torch.load(path, weights_only=True))  # type: ignore[return-value]


@torch.no_grad()
def states(clip: models.ToyClip, pairs: list[tuple[world.Picture, world.Picture]]) -> tuple[Tensor, ...]:
    """(winners, losers, texts): CLIP's pooled states before projection."""
    drawn = np.stack([render.image(p) for side in (0, 1) for p in (q[side] for q in pairs)])
    seen = clip.image_states(data.to_tensor(drawn).to(device())).cpu()
    return (
        seen[: len(pairs)],
        seen[len(pairs) :],
        clip.text_states([captions.caption(q[0]) for q in pairs]).cpu(),
    )
