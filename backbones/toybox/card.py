"""Toybox's quality card: how good the shipped models are, on prompts and pictures that none was trained on.

    numbers = card(folder, quick=False, pictures_dir=Path("card"))

Every number has its bar in ``BARS``. Generated pictures are read by ``judge``, a classifier of rendered
pictures only; its own accuracy on rendered evaluation pictures is part of the card.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from . import captions, models, nets, render, sampling, world
from .training import data
from .training.preference import pair

BARS: dict[str, float] = {
    "vae_psnr_db": 28.0,
    "clip_r_at_1": 0.85,
    "noun": 0.95,
    "scene": 0.95,
    "colour": 0.90,
    "accessory": 0.80,
    "two_objects": 0.75,
}
Numbers = dict[str, float]


def card(
    folder: Path | None = None,
    *,
    quick: bool = False,
    seed: int = 0,
    pictures_dir: Path | None = None,
    on_event: Callable[[str, Numbers], None] | None = None,
) -> Numbers:
    """All numbers by name; contact sheets go into ``pictures_dir``. A part without weights is left out."""
    folder = folder or models.weights_dir()
    numbers: Numbers = {}
    for part, ask in CHAPTERS.items():
        if (folder / part).exists():
            numbers |= ask(folder, 4 if quick else 1, seed, pictures_dir)
            if on_event:
                on_event(part, dict(numbers))
    return numbers


def verdicts(numbers: Numbers) -> dict[str, bool]:
    """Which bars are met."""
    return {name: numbers[name] >= bar for name, bar in BARS.items() if name in numbers}


def _vae(folder: Path, less: int, seed: int, out: Path | None) -> Numbers:
    """PSNR (dB) of the mean squared error over unseen pictures, through the mean latent."""
    vae = sampling.load_pipeline(folder).vae if (folder / "unet").exists() else _lone_vae(folder)
    images = data.to_tensor(data.held_out(192 // less, start=10_000 * seed)[1])
    with torch.no_grad():
        back = (
            torch.cat([vae.decode(vae.encode(x * 2 - 1).latent_dist.mean).sample for x in images.split(16)])
            / 2
            + 0.5
        )
    back = back.clamp(0, 1)
    _sheet(out, "vae", [images[:24], back[:24]])
    return {"vae_psnr_db": float(-10 * torch.log10((back - images).square().mean()))}


def _lone_vae(folder: Path) -> torch.nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()


def _clip(folder: Path, less: int, seed: int, out: Path | None) -> Numbers:
    """Share of 256 full captions whose picture comes first, both ways."""
    pictures = _telling_pictures(256, seed)
    clip = models.load_clip(folder)
    seen = clip.encode_image(data.to_tensor(np.stack([render.image(p) for p in pictures])))
    match = seen @ clip.encode_text([captions.caption(p) for p in pictures]).T
    right = torch.arange(len(pictures))
    return {
        "clip_r_at_1": float((match.argmax(0) == right).float().mean()),
        "clip_r_at_1_image_to_text": float((match.argmax(1) == right).float().mean()),
    }


def _telling_pictures(count: int, seed: int, things: tuple[int, ...] = (1, 2)) -> list[world.Picture]:
    """Evaluation pictures whose full caption tells all, no two captions alike."""
    found: dict[str, world.Picture] = {}
    number = 50_000 * (seed + 1)
    while len(found) < count:
        picture = world.fully_named(world.sample_picture(number, split="eval"))
        number += 1
        nameable = all(world.nameable(thing.look) for thing in picture.things)
        if nameable and len(picture.things) in things and world.caption_reserved(picture):
            found.setdefault(captions.caption(picture), picture)
    return list(found.values())


def _judge(folder: Path, less: int, seed: int, out: Path | None) -> Numbers:
    """The judge's own accuracy on rendered evaluation pictures."""
    judge = models.load_judge(folder)
    pictures, images = data.held_out(512 // less, start=20_000 * (seed + 1))
    read = [facts for x in data.to_tensor(images).split(64) for facts in judge.facts(x)]
    return {f"judge_{name}": value for name, value in _marks(pictures, read).items()}


def _marks(pictures: list[world.Picture], read: list[dict[str, object]]) -> Numbers:
    """Shares of right answers: noun, colour and accessory over pictures of one thing (accessory where
    there is one), scene over all, both objects over pictures of two."""
    rows: dict[str, list[bool]] = {
        "noun": [],
        "scene": [],
        "colour": [],
        "accessory": [],
        "action": [],
        "two_objects": [],
    }
    for picture, facts in zip(pictures, read, strict=True):
        rows["scene"].append(facts["scene"] == picture.scene)
        nouns: list[str] = facts["nouns"]  # type: ignore[assignment]
        first = picture.things[0]
        if len(picture.things) == 2:
            rows["two_objects"].append({t.noun for t in picture.things} <= set(nouns))
            continue
        rows["noun"].append(nouns[0] == first.noun)
        if first.look.colour in world.COLOURS:
            rows["colour"].append(facts["colours"].get(first.noun) == first.look.colour)  # type: ignore[attr-defined]
        if first.accessory != "none":
            rows["accessory"].append(facts["accessory"] == first.accessory)
        if first.action != "none":
            rows["action"].append(facts["action"] == first.action)
    return {key: sum(row) / len(row) for key, row in rows.items() if row}


def _unet(folder: Path, less: int, seed: int, out: Path | None) -> Numbers:
    """Pictures generated for unseen captions, marked by the judge; ``rendered_``: the renderer's drawings for
    the same captions, which is the most that a judge of this accuracy can give."""
    pipeline, judge = sampling.load_pipeline(folder), models.load_judge(folder)
    pictures = [
        *_telling_pictures(192 // less, seed + 1, (1,)),
        *_telling_pictures(64 // less, seed + 1, (2,)),
    ]
    prompts = [captions.caption(replace(p, template="a photo of")) for p in pictures]
    drawn = torch.cat(
        [sampling.draw(pipeline, prompts[i : i + 32], seed=seed + i) for i in range(0, len(prompts), 32)]
    )
    rendered = data.to_tensor(np.stack([render.image(p) for p in pictures]))
    _sheet(out, "generated", [rendered[:24], drawn[:24], rendered[-12:], drawn[-12:]])
    told, most = (
        _marks(pictures, [facts for x in images.split(64) for facts in judge.facts(x)])
        for images in (drawn, rendered)
    )
    return told | {f"rendered_{name}": value for name, value in most.items()}


def _identity(folder: Path, less: int, seed: int, out: Path | None) -> Numbers:
    """Same instance drawn anew against another instance of the noun: mean cosines, and the chance that the
    same is nearer (AUC). Evaluation looks only."""
    encoder = models.load_identity(folder)
    subjects = [
        world.subject(noun, 1000 * seed + i) for noun in world.NOUNS for i in range(8 // min(less, 2))
    ]
    z = torch.stack([encoder.encode_image(_drawings(world.subject_pictures(s, 4, seed))) for s in subjects])
    cosines = torch.einsum("aid,bjd->abij", z, z)
    nouns = np.array([s.noun for s in subjects])
    same_noun = torch.from_numpy(nouns[:, None] == nouns[None]) & ~torch.eye(len(subjects), dtype=torch.bool)
    pairs = torch.triu_indices(4, 4, offset=1)
    same = torch.stack([cosines[i, i][pairs[0], pairs[1]] for i in range(len(subjects))]).flatten()
    other = cosines[same_noun].flatten()
    return {
        "identity_same": float(same.mean()),
        "identity_other_same_noun": float(other.mean()),
        "identity_auc": auc(same, other),
    }


def auc(high: Tensor, low: Tensor) -> float:
    """The chance that a draw from ``high`` exceeds one from ``low``; ties count half."""
    order, _ = low.sort()
    below, upto = torch.searchsorted(order, high), torch.searchsorted(order, high, right=True)
    return float((below + upto).double().mean() / 2 / len(low))


def _drawings(pictures: Iterable[world.Picture]) -> Tensor:
    return data.to_tensor(np.stack([render.image(p) for p in pictures]))


def _detector(folder: Path, less: int, seed: int, out: Path | None) -> Numbers:
    """Mean IoU of the best box, and the mean average precision at IoU 0.5 over nouns."""
    detector = models.load_detector(folder)
    pictures, images = data.held_out(200 // less, start=40_000 * (seed + 1))
    overlaps, hits = [], {noun: list[tuple[float, bool]]() for noun in world.NOUNS}
    counts = dict.fromkeys(world.NOUNS, 0)
    for picture, image in zip(pictures, data.to_tensor(images), strict=True):
        boxes = {
            t.noun: tuple(map(float, box))
            for t, box in zip(picture.things, render.render(picture).boxes, strict=True)
        }
        for noun in world.NOUNS:
            found, there = detector.detect(image, noun), boxes.get(noun)
            counts[noun] += there is not None
            overlaps += [nets.overlap(found[0][0], there) if found else 0.0] if there else []
            hits[noun] += _hits(found, there)
    precisions = [_average_precision(hits[noun], counts[noun]) for noun in world.NOUNS if counts[noun]]
    return {"detector_iou": float(np.mean(overlaps)), "detector_map50": float(np.mean(precisions))}


def _hits(
    found: list[tuple[tuple[float, ...], float]], there: tuple[float, ...] | None
) -> list[tuple[float, bool]]:
    rows, taken = [], False
    for box, score in found:
        hit = there is not None and not taken and nets.overlap(box, there) >= 0.5
        taken |= hit
        rows.append((score, hit))
    return rows


def _average_precision(hits: list[tuple[float, bool]], count: int) -> float:
    """The area under the precision-recall curve (precision made monotone, all points)."""
    right = np.array([hit for _, hit in sorted(hits, key=lambda row: -row[0])], dtype=float)
    if not len(right):
        return 0.0
    precision = right.cumsum() / np.arange(1, len(right) + 1)
    best: NDArray[np.float64] = np.maximum.accumulate(precision[::-1])[::-1]
    return float((best * right).sum() / count)


def _preference(folder: Path, less: int, seed: int, out: Path | None) -> Numbers:
    """Share of evaluation pairs ranked as the renderer ranks them; also where only activity differs."""
    scorer = models.load_preference(folder)
    pairs = [pair(1_000_000 * seed + n, split="eval") for n in range(256 // less)]
    prompts = [captions.caption(better) for better, _ in pairs]
    with torch.no_grad():
        margins = torch.cat(
            [
                scorer.score(_drawings(p[0] for p in pairs[i : i + 64]), prompts[i : i + 64])
                - scorer.score(_drawings(p[1] for p in pairs[i : i + 64]), prompts[i : i + 64])
                for i in range(0, len(pairs), 64)
            ]
        )
    acts = [
        i
        for i, (a, b) in enumerate(pairs)
        if replace(a.things[0], pose=b.things[0].pose, action=b.things[0].action) == b.things[0]
        and a.scene == b.scene
    ]
    return {
        "preference_pairs": float((margins > 0).float().mean()),
        "preference_activity_pairs": float((margins[acts] > 0).float().mean()),
    }


def _sheet(out: Path | None, name: str, rows: list[Tensor]) -> None:
    """A contact sheet: each tensor of pictures in lines of twelve, twice as large."""
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    lines = [line for pair_of in _interleave(rows) for line in pair_of]
    pixels = torch.cat([torch.cat(list(line), dim=2) for line in lines], dim=1)
    image = (pixels.permute(1, 2, 0) * 255).round().byte().numpy()
    Image.fromarray(image).resize((image.shape[1] * 2, image.shape[0] * 2), 0).save(out / f"{name}.png")


def _interleave(rows: list[Tensor]) -> list[list[Tensor]]:
    """Twelve of the first, the same twelve of the second, and so on."""
    split = [[part for part in row.split(12) if len(part) == 12] for row in rows]
    return [
        list(lines) for a, b in zip(split[::2], split[1::2], strict=True) for lines in zip(a, b, strict=True)
    ]


def pick_prompts(count: int, seed: int = 0) -> list[str]:
    """Evaluation prompts for a look by eye."""
    pictures = _telling_pictures(count, seed)
    random.Random(seed).shuffle(pictures)
    return [captions.caption(p) for p in pictures]


CHAPTERS: dict[str, Callable[[Path, int, int, Path | None], Numbers]] = {
    "vae": _vae,
    "clip": _clip,
    "judge": _judge,
    "identity": _identity,
    "detector": _detector,
    "preference": _preference,
    "unet": _unet,
}
