"""The judge: a classifier of rendered pictures only, which the card lets loose on generated ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import world
from ..nets import Judge
from . import data
from .loop import Schedule, checkpoint_path, device

UNTOLD = -100
NIGHT_SHIFT = 0.08  # generated pictures are softer and noisier than rendered ones; so is what the judge sees


@dataclass
class JudgePart:
    state_dir: Path
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=1200, batch=64, lr=3e-3, warmup=50, weight_decay=0.02, ema=0.99, save_every=100
        )
    )
    name: str = "judge"
    exported: str = "judge/model.safetensors"
    num_pictures: int = data.NUM_PICTURES

    def build(self) -> nn.Module:
        self.images = data.images(self.state_dir, self.num_pictures)
        return Judge()

    def loss(self, model: nn.Module, step: int) -> dict[str, Tensor]:
        picks = data.batch_indices(self.schedule.seed + 3, step, self.schedule.batch, len(self.images))
        pictures = [world.sample_picture(int(i)) for i in picks]
        out = model(soften(data.to_tensor(self.images[picks]).to(device())))
        return judge_loss(out, [truth(p) for p in pictures])

    def export(self, model: nn.Module, weights_dir: Path) -> None:
        save(model, weights_dir / "judge")


def save(model: nn.Module, folder: Path, without: str = "nothing") -> None:
    """fp16 ``model.safetensors`` in a folder of its own; names that begin with ``without`` are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu() for k, v in model.state_dict().items() if not k.startswith(without)}
    half = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in state.items()}
    save_file(half, folder / "model.safetensors")


def soften(images_BCHW: Tensor) -> Tensor:
    """A random blur of the batch by at most half and a little noise, as an autoencoder would."""
    blurred = F.avg_pool2d(F.pad(images_BCHW, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share = torch.rand(len(images_BCHW), 1, 1, 1).to(images_BCHW.device) * 0.8
    noise = torch.randn(images_BCHW.shape).to(images_BCHW.device) * NIGHT_SHIFT * torch.rand(1).item()
    return (images_BCHW.lerp(blurred, share) + noise).clamp(0, 1)


def truth(picture: world.Picture) -> dict[str, list[int] | int]:
    """Indices of the facts; by noun for colour and pattern, ``UNTOLD`` for nouns not there."""
    colours, patterns = [UNTOLD] * len(world.NOUNS), [UNTOLD] * len(world.NOUNS)
    for thing in picture.things:
        place = world.NOUNS.index(thing.noun)
        patterns[place] = world.PATTERNS.index(thing.look.pattern) if thing.look.mark == "none" else UNTOLD
        if thing.look.colour in world.COLOURS:
            colours[place] = list(world.COLOURS).index(thing.look.colour)
    first = picture.things[0]
    return {
        "noun": [int(noun in {t.noun for t in picture.things}) for noun in world.NOUNS],
        "colour": colours,
        "pattern": patterns,
        "scene": list(world.SCENES).index(picture.scene),
        "accessory": list(world.ACCESSORIES).index(first.accessory),
        "pose": list(world.POSES).index(first.pose),
        "action": list(world.ACTIONS).index(first.action),
    }


def judge_loss(out: dict[str, Tensor], truths: list[dict[str, list[int] | int]]) -> dict[str, Tensor]:
    """The sum of a multi-label loss over nouns and a cross entropy per other fact."""
    asked = {key: torch.tensor([t[key] for t in truths]).to(value.device) for key, value in out.items()}
    terms = {key: _entropy(value, asked[key]) for key, value in out.items() if key != "noun"}
    terms["noun"] = F.binary_cross_entropy_with_logits(out["noun"], asked["noun"].float()) * len(world.NOUNS)
    return {"loss": torch.stack(list(terms.values())).sum(), **{k: v.detach() for k, v in terms.items()}}


def _entropy(logits: Tensor, asked: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), asked.flatten(), ignore_index=UNTOLD)


def warm_trunk(state_dir: Path, trunk: nn.Module) -> None:
    """Give a trunk the judge's averaged weights, where there are any: it already sees."""
    path = checkpoint_path(state_dir, "judge")
    if path.exists():
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = {**state["model"], **state["average"]}
        trunk.load_state_dict({key: state[f"trunk.{key}"] for key in trunk.state_dict()})
