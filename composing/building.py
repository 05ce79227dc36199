"""Building a scene dataset: every scene a function of (recipe, subjects, seed, number), in any order.

Workers make scenes beside each other, and they are written in their order; so a build that was killed goes
on with the first scene that is not there, and ends as one that was not. A thousand scenes need the memory of
a few, since nothing of a written scene is kept but 64 bits that tell duplicates.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from PIL import Image

from ..core.errors import LikenessError
from ..core.hashing import canonical, hash_bytes, hash_json
from ..core.lock import run_lock
from ..core.randomness import generator
from ..subjects.subject import Subject
from .backgrounds import Backgrounds, DrawnBackgrounds
from .compose import ComposeConfig, Composition, compose, varied
from .cutout import Cutout, best_cutouts, check_aspects
from .dataset import (
    Member,
    SceneDataset,
    is_whole,
    load_dataset,
    member_of,
    scene_path,
    scene_paths,
    write_head,
    write_scene,
)
from .layout import Layout, things_of
from .pictures import difference_hash, png_bytes
from .proposing import Drawn, Proposer, RuleBased, draw_layout
from .recaption import Captioner, PromptingStrategies, RuleCaptioner, caption_scene
from .repaint import Inpainter, Progress, RepaintConfig, repaint
from .validation import Limits

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 6  # draws of one scene before a duplicate is let through


@dataclass(frozen=True, kw_only=True)
class SceneRecipe:
    """What decides a dataset beside its subjects. ``count`` may grow: more scenes are added."""

    count: int = field(default=100, compare=False)
    least_subjects: int = 2
    most_subjects: int = 3  # of one scene, drawn by lot
    cutouts_per_subject: int = 5  # the best ones; 0 takes all
    canvas: ComposeConfig = field(default_factory=ComposeConfig)
    limits: Limits = field(default_factory=Limits)
    flip: float = 0.0  # share of mirrored things; off, as in the reference
    rotate: float = 0.0  # share of turned things, up to 5 degrees; off, as in the reference
    strategies: PromptingStrategies = field(default_factory=PromptingStrategies)
    repainting: RepaintConfig = field(default_factory=RepaintConfig)
    min_difference: int = 4  # of 64 bits of dHash: scenes that differ in fewer are duplicates; 0 turns it off
    layout: str = ""  # a layout that all scenes share, as JSON; empty: drawn
    licence: str = field(default="", compare=False)  # of the photos and backgrounds, in your words
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 1_000_000:
            raise LikenessError(f"{self.count} scenes were asked for", expected="between 1 and a million")
        if not 1 <= self.least_subjects <= self.most_subjects <= 8:
            raise LikenessError(
                f"Scenes of {self.least_subjects} to {self.most_subjects} subjects",
                expected="1 to 8, the least not above the most",
            )


@dataclass(frozen=True)
class Cast:
    """The subjects of a dataset and their cut-outs, the best first."""

    subjects: tuple[Subject, ...]
    cutouts: Mapping[str, tuple[Cutout, ...]]

    @property
    def members(self) -> tuple[Member, ...]:
        return tuple(member_of(subject) for subject in self.subjects)


@dataclass(frozen=True, kw_only=True)
class Makers:
    """Who proposes, paints and captions. Models among them are asked by one worker at a time."""

    proposer: Proposer = field(default_factory=RuleBased)
    backgrounds: Backgrounds = field(default_factory=DrawnBackgrounds)
    captioner: Captioner = field(default_factory=RuleCaptioner)
    inpainter: Inpainter | None = None

    @property
    def names(self) -> dict[str, str]:
        painter = self.inpainter.name if self.inpainter else ""
        return {
            "proposer": self.proposer.name,
            "backgrounds": self.backgrounds.name,
            "captioner": self.captioner.name,
            "inpainter": painter,
        }


def cast_of(subjects: Sequence[Subject], *, most: int = 0) -> Cast:
    """Cut every subject out. LikenessError for none, two of one name, or one without a usable mask."""
    things_of([(subject.name, subject.class_noun, 1.0) for subject in subjects][:8])
    names = [subject.name for subject in subjects]
    if len(set(names)) < len(names):
        raise LikenessError("Two subjects have the same name", fix="Give each folder a name of its own")
    cutouts = {subject.name: tuple(best_cutouts(subject, most=most)) for subject in subjects}
    for name in names:
        check_aspects(cutouts[name])
    if len(names) == 1:
        log.warning("There is one subject: scenes of several teach a model to tell them apart")
    return Cast(tuple(subjects), cutouts)


def build_dataset(
    folder: Path, cast: Cast, recipe: SceneRecipe, makers: Makers | None = None, *, workers: int = 2
) -> Generator[Progress, None, SceneDataset]:
    """Build ``recipe.count`` scenes in ``folder``, or those that are missing; the dataset at the end.

    Close the generator to interrupt: what is written stays, and the same call goes on. Raises LikenessError
    when the folder holds another dataset or is being written by another process.
    """
    makers = makers or Makers()
    settings = canonical(recipe)
    settings["fields"] = {k: v for k, v in settings["fields"].items() if k not in ("count", "licence")}
    key = hash_json([settings, makers.names, [subject.content_hash for subject in cast.subjects]])
    head = SceneDataset(folder=folder, members=cast.members, key=key, licence=recipe.licence)
    folder.mkdir(parents=True, exist_ok=True)
    with run_lock(folder):
        write_head(head, {"settings": settings, "makers": makers.names})
        yield from _build_missing(folder, _SceneMaker(cast, recipe, makers), recipe, workers)
    return load_dataset(folder)


def _build_missing(
    folder: Path, maker: _SceneMaker, recipe: SceneRecipe, workers: int
) -> Generator[Progress, None, None]:
    """Scenes in order; at most ``2 * workers`` are made ahead, so memory does not grow with the number."""
    hashes: list[int] = []
    ahead: deque[tuple[int, dict[str, Any] | Future[Made]]] = deque()
    numbers = iter(range(recipe.count))
    yield Progress("building scenes", 0, recipe.count)
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        try:
            for done in range(recipe.count):
                while len(ahead) < 2 * max(1, workers) and (number := next(numbers, None)) is not None:
                    record = is_whole(folder, number)
                    ahead.append(
                        (number, record if record is not None else pool.submit(maker.make, number, 0))
                    )
                number, job = ahead.popleft()
                if isinstance(job, dict):
                    hashes.append(int(str(job.get("difference_hash", "0")), 16))
                else:
                    hashes.append(_commit(folder, maker, number, job.result(), hashes, recipe))
                yield Progress("building scenes", done + 1, recipe.count)
        finally:
            for _, job in ahead:
                if isinstance(job, Future):
                    job.cancel()


def _commit(
    folder: Path, maker: _SceneMaker, number: int, made: Made, hashes: Sequence[int], recipe: SceneRecipe
) -> int:
    """Write a scene, drawn again as long as an earlier one looks the same; its hash."""
    for attempt in range(1, MAX_ATTEMPTS):
        if not _is_copy(made.difference_hash, hashes, recipe.min_difference):
            break
        made = maker.make(number, attempt)
    scene_path(folder, number).unlink(missing_ok=True)
    write_scene(folder, made.files, made.record)
    return made.difference_hash


def _is_copy(value: int, hashes: Sequence[int], least: int) -> bool:
    return any((value ^ other).bit_count() < least for other in hashes)


# --- one scene ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """A scene in memory: the bytes of its files, and its record."""

    files: Mapping[str, bytes]
    record: Mapping[str, Any]
    difference_hash: int


class _SceneMaker:
    """``make(number, attempt)``: a scene, whoever asks and when."""

    def __init__(self, cast: Cast, recipe: SceneRecipe, makers: Makers) -> None:
        self.cast, self.recipe, self.makers = cast, recipe, makers
        self.lock = Lock()  # a model answers one question at a time
        self.shared = Layout.from_json(recipe.layout) if recipe.layout.strip() else None

    def make(self, number: int, attempt: int) -> Made:
        seed = scene_seed(self.recipe.seed, number, attempt)
        composition, drawn, cutouts = self._composed(seed)
        composition, painted = self._repainted(composition, seed)
        caption, warnings = self._captioned(composition, seed)
        return self._packed(number, attempt, composition, drawn, cutouts, caption, warnings + painted)

    def _composed(self, seed: int) -> tuple[Composition, Drawn, dict[str, Cutout]]:
        recipe, dice = self.recipe, random.Random(f"scene {seed}")
        names = self._chosen(dice)
        cutouts = {name: dice.choice(self.cast.cutouts[name]) for name in names}
        things = things_of([(n, cutouts[n].noun, cutouts[n].aspect) for n in names])
        if self.shared is not None:
            drawn = Drawn(layout=self.shared, ratios={}, tries=0, proposer="given")
        elif isinstance(self.makers.proposer, RuleBased):
            drawn = draw_layout(self.makers.proposer, things, seed=seed, limits=recipe.limits)
        else:
            with self.lock:
                drawn = draw_layout(
                    self.makers.proposer, things, seed=seed, limits=recipe.limits, fallback=RuleBased()
                )
        layout = varied(drawn.layout, seed=seed, flip=recipe.flip, rotate=recipe.rotate)
        canvas = recipe.canvas
        picture, origin = self.makers.backgrounds.picture(
            layout.scene, canvas.width, canvas.height, seed=seed
        )
        composition = compose(layout, cutouts, picture, canvas, origin=origin)
        return composition, drawn, cutouts

    def _chosen(self, dice: random.Random) -> list[str]:
        if self.shared is not None:
            return [item.subject for item in self.shared.items]
        names = [subject.name for subject in self.cast.subjects]
        most = min(self.recipe.most_subjects, len(names))
        return sorted(dice.sample(names, dice.randint(min(self.recipe.least_subjects, most), most)))

    def _repainted(self, composition: Composition, seed: int) -> tuple[Composition, list[str]]:
        if self.makers.inpainter is None:
            return composition, []
        with self.lock:
            work = repaint(composition, self.makers.inpainter, self.recipe.repainting, seed=seed)
            while True:
                try:
                    next(work)
                except StopIteration as end:
                    done = end.value
                    return done.composition, [f"repainting: {r} failed" for r in done.verdict.reasons]

    def _captioned(self, composition: Composition, seed: int) -> tuple[str, list[str]]:
        arguments = (self.makers.captioner, composition.image, composition.layout, self.recipe.strategies)
        if isinstance(self.makers.captioner, RuleCaptioner):
            return caption_scene(*arguments, seed=seed)
        with self.lock:
            return caption_scene(*arguments, seed=seed)

    def _packed(
        self,
        number: int,
        attempt: int,
        composition: Composition,
        drawn: Drawn,
        cutouts: Mapping[str, Cutout],
        caption: str,
        warnings: list[str],
    ) -> Made:
        width, height = composition.image.size
        placed = composition.placed
        image, text, masks = scene_paths(number, [one.subject for one in placed])
        mask_bytes = [png_bytes(one.mask(width, height)) for one in placed]
        files = {image: png_bytes(composition.image), text: (caption + "\n").encode()}
        files |= dict(zip(masks, mask_bytes, strict=True))
        alike = difference_hash(composition.image)
        record = {
            "index": number,
            "attempt": attempt,
            "image": image,
            "caption_file": text,
            "width": width,
            "height": height,
            "caption": caption,
            "difference_hash": f"{alike:016x}",
            "subjects": [
                {
                    "name": one.subject,
                    "noun": one.noun,
                    "box": list(one.box),
                    "mask": mask,
                    "mask_sha256": hash_bytes(content),
                    "cutout_sha256": one.cutout_sha256,
                    "photo_sha256": cutouts[one.subject].photo_sha256,
                }
                for one, mask, content in zip(placed, masks, mask_bytes, strict=True)
            ],
            "layout": {
                "scene": composition.layout.scene,
                "items": [asdict(i) for i in composition.layout.items],
            },
            "provenance": {
                "makers": self.makers.names,
                "tries": drawn.tries,
                "rejected": dict(drawn.rejected),
                "background": dict(composition.background),
                "warnings": warnings,
            },
        }
        return Made(files=files, record=record, difference_hash=alike)


def scene_seed(seed: int, number: int, attempt: int) -> int:
    """31 bits for one draw of one scene."""
    import torch

    return int(torch.randint(0, 2**31, (1,), generator=generator(seed, "scene", number, attempt)).item())


def compose_once(
    cast: Cast, layout: Layout, background: Image.Image, config: ComposeConfig, *, seed: int = 0
) -> Composition:
    """One scene of a given layout, with a cut-out of each subject drawn by lot: what a graph composes."""
    from .layout import renamed

    dice = random.Random(f"cut-outs {seed}")
    things = things_of([(s.name, s.class_noun, 1.0) for s in cast.subjects])
    cutouts = {thing.name: dice.choice(cast.cutouts[thing.name]) for thing in things}
    return compose(renamed(layout, things), cutouts, background, config)
