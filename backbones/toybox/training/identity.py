"""The identity encoder, in DINO's role: the same instance drawn anew is the positive, all else negative.

    L = SupCon(z), temperature 0.1     (Khosla et al. 2020, arXiv:2004.11362, eq. 2)

A batch holds a few nouns with several instances each and several drawings of every instance, so that the
negatives that matter are other instances of the same noun, and scene, pose and accessory tell nothing. Empty
scenes stand among them, each scene one label: a place is like itself and unlike every subject.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import render, world
from ..nets import Identity
from . import data
from .judge import save, soften, warm_trunk
from .loop import Schedule, device

NUM_INSTANCES, DRAWINGS = 3_500, 4
NOUNS_PER_BATCH, SCENES_PER_BATCH = 4, 3
TEMPERATURE = 0.1


@dataclass
class IdentityPart:
    state_dir: Path
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=800, batch=96, lr=2e-3, warmup=40, weight_decay=0.02, ema=0.99, save_every=100
        )
    )
    name: str = "identity"
    exported: str = "identity/model.safetensors"
    num_instances: int = NUM_INSTANCES

    def build(self) -> nn.Module:
        path = self.state_dir / f"instances-{self.num_instances}.npy"
        self.images = data.cached_images(path, self.num_instances * DRAWINGS, _render_drawings)
        empty = np.stack([render.image(picture) for picture in world.empty_scenes()])
        self.scenes = empty.reshape(len(world.SCENES), -1, *empty.shape[1:])
        model = Identity()
        warm_trunk(self.state_dir, model.trunk)
        return model

    def loss(self, model: nn.Module, step: int) -> dict[str, Tensor]:
        instances, scenes = self._instances(step), self._scenes(step)
        picks = (instances[:, None] * DRAWINGS + np.arange(DRAWINGS)).ravel()
        images = np.concatenate([self.images[picks], scenes[1]])
        labels = np.concatenate([np.repeat(instances, DRAWINGS), np.repeat(-1 - scenes[0], DRAWINGS)])
        z_BD = model(soften(data.to_tensor(images).to(device())))
        return {"loss": supcon(z_BD, torch.from_numpy(labels).to(device()))}

    def _scenes(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Some scenes of a step, and drawings of each of them in any light."""
        rng = np.random.default_rng((self.schedule.seed + 5, step))
        scenes = rng.permutation(len(self.scenes))[:SCENES_PER_BATCH]
        drawn = [self.scenes[n][rng.permutation(self.scenes.shape[1])[:DRAWINGS]] for n in scenes]
        return scenes, np.concatenate(drawn)

    def _instances(self, step: int) -> NDArray[np.int64]:
        """The instances of a step: those of number n are of noun n modulo the number of nouns."""
        rng = np.random.default_rng((self.schedule.seed + 4, step))
        nouns = rng.permutation(len(world.NOUNS))[:NOUNS_PER_BATCH]
        each = self.schedule.batch // DRAWINGS // NOUNS_PER_BATCH
        numbers = rng.permutation(self.num_instances // len(world.NOUNS))[:each]
        return (numbers[None] * len(world.NOUNS) + nouns[:, None]).ravel()

    def export(self, model: nn.Module, weights_dir: Path) -> None:
        save(model, weights_dir / "identity")


def supcon(z_BD: Tensor, label_B: Tensor) -> Tensor:
    """Eq. 2 of SupCon: the mean over anchors of -log softmax, averaged over each anchor's positives."""
    logits = z_BD @ z_BD.T / TEMPERATURE
    self_BB = torch.eye(len(z_BD), dtype=torch.bool, device=z_BD.device)
    log_p = logits - logits.masked_fill(self_BB, float("-inf")).logsumexp(dim=1, keepdim=True)
    positive = (label_B[:, None] == label_B[None]) & ~self_BB
    return -((log_p * positive).sum(1) / positive.sum(1)).mean()


def training_instance(number: int) -> world.Instance:
    """An instance with an odd look that belongs to training; noun ``number`` modulo the nouns."""
    noun, rng = world.NOUNS[number % len(world.NOUNS)], random.Random(f"instance|{number}")
    while True:
        look = world.odd_look(rng)
        if not world.look_reserved(noun, look):
            return world.Instance(noun=noun, look=look, seed=number)


def _render_drawings(start: int, stop: int) -> NDArray[np.uint8]:
    return np.stack([_drawing(number) for number in range(start, stop)])


def _drawing(number: int) -> NDArray[np.uint8]:
    instance = training_instance(number // DRAWINGS)
    return render.image(world.redraw(instance, random.Random(f"drawing|{number}")))
