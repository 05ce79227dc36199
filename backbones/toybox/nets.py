"""The small seeing nets of Toybox: one convolutional trunk, and the identity, judge and detector heads on it.

All take pictures as float (B, 3, 64, 64) in [0, 1]. Plain torch, saved as ``model.safetensors``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import world

TRUNK_WIDTHS = (32, 64, 128, 256)
_FINEST = 7  # layers of ``Trunk.fine`` up to its 16 x 16 maps
HEAD_SIZES: dict[str, int] = {
    "noun": len(world.NOUNS),
    "scene": len(world.SCENES),
    "accessory": len(world.ACCESSORIES),
    "pose": len(world.POSES),
    "action": len(world.ACTIONS),
    "colour": len(world.NOUNS) * len(world.COLOURS),
    "pattern": len(world.NOUNS) * len(world.PATTERNS),
}


class Residual(nn.Module):
    """Two 3 x 3 convolutions with batch norms and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


def _down(before: int, after: int, kernel: int) -> list[nn.Module]:
    conv = nn.Conv2d(before, after, kernel, stride=2, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(after), nn.ReLU()]


class Trunk(nn.Module):
    """64 x 64 pictures to 8 x 8 maps of 128 and 4 x 4 maps of 256 channels. A ``deep`` one has
    two blocks more and three times the weights."""

    def __init__(self, *, deep: bool = True) -> None:
        super().__init__()
        a, b, c, d = TRUNK_WIDTHS
        more = [Residual(c)] if deep else [], [Residual(d)] if deep else []
        self.fine = nn.Sequential(
            *_down(3, a, 5), *_down(a, b, 3), Residual(b), *_down(b, c, 3), Residual(c), *more[0]
        )
        self.coarse = nn.Sequential(*_down(c, d, 3), *more[1])

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        return self.maps(images_BCHW)[1:]

    def maps(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The two, and before them 16 x 16 maps of 64 channels."""
        if images_BCHW.shape[-1] != world.SIZE_PX or images_BCHW.shape[-2] != world.SIZE_PX:
            images_BCHW = F.interpolate(
                images_BCHW, size=(world.SIZE_PX,) * 2, mode="bilinear", antialias=True
            )
        finest = self.fine[:_FINEST](images_BCHW * 2 - 1)
        fine = self.fine[_FINEST:](finest)
        return finest, fine, self.coarse(fine)

    def pooled(self, images_BCHW: Tensor) -> Tensor:
        """Mean and maximum over the coarse map, (B, 512)."""
        coarse = self(images_BCHW)[1]
        return torch.cat([coarse.mean(dim=(2, 3)), coarse.amax(dim=(2, 3))], dim=1)


class Judge(nn.Module):
    """Reads facts off a picture. ``forward`` gives logits by fact; ``noun`` is multi-label (one per noun,
    sigmoid), ``colour`` and ``pattern`` are per noun: (B, nouns, choices)."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.heads = nn.ModuleDict({key: nn.Linear(512, size) for key, size in HEAD_SIZES.items()})

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        pooled = self.trunk.pooled(images_BCHW)
        out = {key: head(pooled) for key, head in self.heads.items()}
        for key in ("colour", "pattern"):
            out[key] = out[key].unflatten(1, (len(world.NOUNS), -1))
        return out

    @torch.no_grad()
    def facts(self, images_BCHW: Tensor) -> list[dict[str, object]]:
        """Per picture: ``nouns`` (all seen, the surest first), ``scene``, ``accessory``, ``pose``, ``action``
        and ``colours`` (by noun seen)."""
        out = self(images_BCHW)
        return [_read({key: value[i] for key, value in out.items()}) for i in range(len(images_BCHW))]


def _read(logits: dict[str, Tensor]) -> dict[str, object]:
    order = [int(i) for i in logits["noun"].argsort(descending=True)]
    seen = [i for i in order if logits["noun"][i] > 0] or order[:1]
    colours = tuple(world.COLOURS)
    return {
        "nouns": [world.NOUNS[i] for i in seen],
        "colours": {world.NOUNS[i]: colours[int(logits["colour"][i].argmax())] for i in seen},
        "patterns": {world.NOUNS[i]: world.PATTERNS[int(logits["pattern"][i].argmax())] for i in seen},
        "scene": tuple(world.SCENES)[int(logits["scene"].argmax())],
        "accessory": tuple(world.ACCESSORIES)[int(logits["accessory"].argmax())],
        "pose": tuple(world.POSES)[int(logits["pose"].argmax())],
        "action": tuple(world.ACTIONS)[int(logits["action"].argmax())],
    }


class Identity(nn.Module):
    """DINO's role: an embedding of *which* subject is seen, whatever its pose and accessory, and, with a
    smaller weight, of where it is. DINO sees both: to an encoder of the subject alone, a model that draws
    the photos' scene whatever the prompt says would be as good as one that obeys.

    A cosine is 0.7 times that of the subjects plus 0.3 times that of the places.
    """

    PLACE_WEIGHT = 0.3

    def __init__(self, subject_width: int = 96, place_width: int = 32) -> None:
        super().__init__()
        self.trunk = Trunk(deep=False)
        self.widths = (subject_width, place_width)
        self.project = nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, sum(self.widths)))

    def parts(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The subject's and the place's features, each of length 1."""
        subject_BD, place_BD = self.project(self.trunk.pooled(images_BCHW)).split(self.widths, dim=-1)
        return F.normalize(subject_BD, dim=-1), F.normalize(place_BD, dim=-1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        subject_BD, place_BD = self.parts(images_BCHW)
        shares = (1 - self.PLACE_WEIGHT) ** 0.5, self.PLACE_WEIGHT**0.5
        return torch.cat([shares[0] * subject_BD, shares[1] * place_BD], dim=-1)

    @torch.no_grad()
    def encode_image(self, images_BCHW: Tensor) -> Tensor:
        """(B, 128), L2-normalised."""
        return self.forward(images_BCHW)


class Detections(NamedTuple):
    """Of a batch: scores as logits (B, nouns, 8, 8); sides left, top, right, bottom in pixels (B, 4, 8, 8);
    logits that a pixel belongs to a thing (B, 64, 64)."""

    scores: Tensor
    sides: Tensor
    shape: Tensor


class Detector(nn.Module):
    """OWL-ViT's role for one noun at a time: each of 8 x 8 cells says whether the middle of a thing of each
    noun is in it and where the thing's box ends, as distances in pixels from the cell's middle. Beside that,
    roughly which pixels are of things.

    The trunk is the judge's, frozen, and not saved again: the weights of all models have to stay small.
    """

    cell_px = 8

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()
        b, c, d = TRUNK_WIDTHS[1:]
        self.mix = nn.Sequential(nn.Conv2d(c + d, 128, 3, padding=1), nn.ReLU())
        self.score = nn.Conv2d(128, len(world.NOUNS), 1)
        self.sides = nn.Conv2d(128, 4, 1)
        self.shape = nn.Sequential(
            nn.Conv2d(128 + b, 64, 1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 16, 1),
        )
        assert self.score.bias is not None
        nn.init.constant_(self.score.bias, -4.0)
        self.trunk.requires_grad_(False)

    def train(self, mode: bool = True) -> Detector:
        super().train(mode)
        self.trunk.eval()
        return self

    def forward(self, images_BCHW: Tensor) -> Detections:
        with torch.no_grad():
            finest, fine, coarse = self.trunk.maps(images_BCHW)
        mixed = self.mix(torch.cat([fine, F.interpolate(coarse, scale_factor=2.0)], dim=1))
        shape = self.shape(torch.cat([finest, F.interpolate(mixed, scale_factor=2.0)], dim=1))
        return Detections(
            self.score(mixed), F.softplus(self.sides(mixed)) * 16, F.pixel_shuffle(shape, 4).squeeze(1)
        )

    @torch.no_grad()
    def detect(
        self, image_CHW: Tensor, noun: str, *, least: float = 0.05
    ) -> list[tuple[tuple[float, ...], float]]:
        """Boxes (x0, y0, x1, y1 in pixels) and scores in [0, 1] of a noun in one picture, the best first;
        overlapping ones are left out."""
        seen = self(image_CHW[None])
        chances = seen.scores[0, world.NOUNS.index(noun)].sigmoid()
        found: list[tuple[tuple[float, ...], float]] = []
        for cell in chances.flatten().argsort(descending=True).tolist():
            y, x = divmod(cell, chances.shape[1])
            if chances[y, x] < least:
                break
            box = self._box(x, y, seen.sides[0, :, y, x].tolist())
            if all(overlap(box, other) < 0.4 for other, _ in found):
                found.append((box, float(chances[y, x])))
        return found

    @torch.no_grad()
    def outline(self, image_CHW: Tensor) -> Tensor:
        """How likely each pixel of one picture belongs to a thing, (64, 64) in [0, 1]."""
        return self(image_CHW[None]).shape[0].sigmoid()  # type: ignore[no-any-return]

    def _box(self, x: int, y: int, sides: list[float]) -> tuple[float, ...]:
        cx, cy = (x + 0.5) * self.cell_px, (y + 0.5) * self.cell_px
        ends = (cx - sides[0], cy - sides[1], cx + sides[2], cy + sides[3])
        return tuple(min(max(end, 0.0), float(world.SIZE_PX)) for end in ends)


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union of two boxes."""
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = wide * high
    return both / max((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both, 1e-9)


class Preference(nn.Module):
    """ImageReward's role: how well a picture matches a prompt, from CLIP's two pooled states.

    A bilinear match plus a small net on both; higher is better, the scale is arbitrary.
    """

    def __init__(self, width: int = 192) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(width, 128), nn.Linear(width, 128)
        self.net = nn.Sequential(nn.Linear(3 * 128, 128), nn.ReLU(), nn.Linear(128, 1))

    def forward(self, image_BD: Tensor, text_BD: Tensor) -> Tensor:
        a, b = self.image(image_BD), self.text(text_BD)
        scores: Tensor = self.net(torch.cat([a, b, a * b], dim=-1))[:, 0]
        return scores
