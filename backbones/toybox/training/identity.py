"""The identity encoder, in DINO's role: two features of a picture, each learned with SupCon.

    L = SupCon(subject, which instance) + SupCon(place, which scene in which light), temperature 0.1
                                                   (Khosla et al. 2020, arXiv:2004.11362, eq. 2)

A batch holds a few nouns with several instances each and several drawings of every instance, so that the
negatives that matter are other instances of the same noun, and scene, pose and accessory tell nothing of the
subject. Empty scenes stand among them, each scene one "instance": a place is unlike every subject.
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
        scenes, drawings = world.empty_scenes(), self.num_instances * DRAWINGS
        self.scene_images = np.stack([render.image(picture) for picture in scenes])
        self.scene_kinds = np.array([sorted(world.SCENES).index(picture.scene) for picture in scenes])
        self.scene_places = np.array([_place(picture) for picture in scenes])
        self.places = np.array([_place(_drawn(number)) for number in range(drawings)])
        model = Identity()
        warm_trunk(self.state_dir, model.trunk)
        return model

    def loss(self, model: nn.Module, step: int) -> dict[str, Tensor]:
        instances, scenes = self._instances(step), self._scenes(step)
        picks = (instances[:, None] * DRAWINGS + np.arange(DRAWINGS)).ravel()
        images = data.to_tensor(np.concatenate([self.images[picks], self.scene_images[scenes]]))
        subjects = np.concatenate([instances.repeat(DRAWINGS), -1 - self.scene_kinds[scenes]])
        places = np.concatenate([self.places[picks], self.scene_places[scenes]])
        subject_BD, place_BD = model.parts(soften(images.to(device())))  # type: ignore[operator]
        losses = {
            "subject": supcon(subject_BD, torch.from_numpy(subjects).to(device())),
            "place": supcon(place_BD, torch.from_numpy(places).to(device())),
        }
        return {"loss": losses["subject"] + losses["place"]} | {
            name: loss.detach() for name, loss in losses.items()
        }

    def _scenes(self, step: int) -> NDArray[np.int64]:
        """Some scenes of a step: numbers of drawings of each of them, in any light."""
        rng = np.random.default_rng((self.schedule.seed + 5, step))
        kinds = rng.permutation(len(world.SCENES))[:SCENES_PER_BATCH]
        of_kind = [np.flatnonzero(self.scene_kinds == kind) for kind in kinds]
        return np.concatenate([rng.permutation(numbers)[:DRAWINGS] for numbers in of_kind])

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
    """Eq. 2 of SupCon: the mean over anchors of -log softmax, averaged over each anchor's positives. An
    anchor without one does not count."""
    logits = z_BD @ z_BD.T / TEMPERATURE
    self_BB = torch.eye(len(z_BD), dtype=torch.bool, device=z_BD.device)
    log_p = logits - logits.masked_fill(self_BB, float("-inf")).logsumexp(dim=1, keepdim=True)
    positive = (label_B[:, None] == label_B[None]) & ~self_BB
    count_B = positive.sum(1)
    return -((log_p * positive).sum(1)[count_B > 0] / count_B[count_B > 0]).mean()


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
    return render.image(_drawn(number))


def _drawn(number: int) -> world.Picture:
    instance = training_instance(number // DRAWINGS)
    return world.redraw(instance, random.Random(f"drawing|{number}"))


def _place(picture: world.Picture) -> int:
    """A number for scene and light."""
    return sorted(world.SCENES).index(picture.scene) * len(world.LIGHTS) + list(world.LIGHTS).index(
        picture.light
    )
