"""Does composing help, and do the measures mean what they say? On Toybox, whose truth is known.

*Effect* (the paper's headline): Custom Diffusion on composed scenes against separate photos of the same
subjects, as many steps, 5 pairs and 3 triples over 3 seeds. Photos learn twice: as scenes do, and as suits
them best. What scenes bear, a fast rate and all of cross-attention, makes a model forget from photos how
things stand together; so the second comparison is the harder one, and both must hold. *Ablation*: each
prompting strategy alone, all, and none.
*Soundness*: CP-CLIP on rendered pictures must rank both right above one missing above both wrong, where the
wrong ones are of the same nouns in other colours. Crops are compared by Toybox's encoder in DINO's role, of
which only the part that sees the subject: its CLIP knows only what captions name. Takes about an hour on 2
cores, a few minutes with ``--quick``. Toybox's numbers say nothing beside those of full-size models.
"""
# Shapes: B pictures, H W pixels.

from __future__ import annotations

import itertools
import random
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backbones import open_backbone
from ..backbones.base import BaseModel
from ..backbones.toybox import render, world
from ..composing.building import Cast, Makers, SceneRecipe, build_dataset
from ..composing.compose import ComposeConfig
from ..composing.dataset import scene_photos
from ..composing.recaption import PromptingStrategies
from ..composing.toybox import ToyboxBackgrounds, ToyboxCaptioner, ToyboxProposer
from ..concepts.applying import apply_concepts
from ..concepts.concept import Concept
from ..scoring.composition import (
    CompositionCard,
    Sought,
    ToyboxDetector,
    crop_to_mask,
    score_composition,
    score_compositions,
    sought_of,
)
from ..scoring.encoders import Encoders, ImageEncoder, open_encoders, toybox_subject_encoder
from ..scoring.metrics import bootstrap_interval
from ..trainers.custom_diffusion import (
    CustomDiffusionConfig,
    Word,
    joint_material,
    joint_subject,
    train_custom_diffusion,
)
from ..trainers.drawing import picture_seed
from ..trainers.events import Done
from . import bar
from .cases import measured
from .composing import finish, toy_cast

GROUPS = (
    *((("rabbit", 301), ("car", 302)), (("cat", 303), ("cup", 304)), (("bear", 305), ("boat", 306))),
    *((("bird", 307), ("house", 308)), (("turtle", 309), ("robot", 310))),
    (("rabbit", 311), ("car", 312), ("cup", 313)),
    (("cat", 314), ("boat", 315), ("umbrella", 316)),
    (("fish", 317), ("robot", 318), ("house", 319)),
)
SEEDS = (0, 1, 2)
NUM_SCENES, NUM_PHOTOS = 48, 4
# What each way learns from, and how; chosen on numbers under 100.
FAST = {"learning_rate": 1e-3, "token_rate": 3.0, "train": "cross_attention"}
GENTLE = {"learning_rate": 1e-4, "token_rate": 30.0, "train": "kv"}
WAYS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "scenes": ("scenes", FAST),
    "photos": ("photos", FAST),
    "photos, at their best": ("photos", GENTLE),
}
TOLD = PromptingStrategies(repeat_tokens=True, background=True)
PLACES = ("on the beach", "in the snow", "in the forest", "in the city")
# A world that the model knows: the paper's backgrounds, too, are drawn by the kind of model that learns.
TOYBOX = Makers(proposer=ToyboxProposer(), backgrounds=ToyboxBackgrounds(), captioner=ToyboxCaptioner())
DRAWN_PER_PROMPT, STEPS, GUIDANCE = 4, 20, 5.0
CP_GAIN, TI_KEPT, RANKED = 0.25, 0.97, 0.98
STRATEGIES: Mapping[str, PromptingStrategies] = {
    "all": PromptingStrategies(composition_token="<scene>", repeat_tokens=True, background=True),
    "repeated tokens and background": TOLD,
    "background only": PromptingStrategies(),
    "composition token only": PromptingStrategies(composition_token="<scene>", background=False),
    "repeated tokens only": PromptingStrategies(repeat_tokens=True, background=False),
    "none": PromptingStrategies(background=False),
}


@dataclass(frozen=True, kw_only=True)
class Judges:
    encoders: Encoders
    crops: ImageEncoder
    detector: ToyboxDetector

    @classmethod
    def open(cls) -> Judges:
        return cls(
            encoders=open_encoders("toybox"), crops=toybox_subject_encoder(), detector=ToyboxDetector()
        )


def run(quick: bool) -> dict[str, Any]:
    """All three. ``quick``: one pair, one seed, a few steps, one strategy, 60 triples of pictures."""
    groups, seeds, steps = (GROUPS[:1], SEEDS[:1], 20) if quick else (GROUPS, SEEDS, None)
    cases = [(number, seed, steps) for number in range(len(groups)) for seed in seeds]
    rows = [row for pair in measured("gen4gen", effect, cases) for row in pair]
    ablation = strategies(range(len(groups[:3])), seeds[0], steps, quick)
    sound = soundness(60 if quick else 500)
    effects = {other: summary(rows, other) for other in WAYS if other != "scenes"}
    return {
        "numbers": {"scenes over": effects, "ablation": ablation, "soundness": sound, "rows": rows},
        "bars": list(bars(effects, sound)),
        "seeds": list(seeds),
    }


def bars(effects: Mapping[str, Any], sound: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    for other, means in effects.items():
        yield bar(f"CP-CLIP, scenes over {other}", value=means["cp_clip gain"], op=">=", bar=CP_GAIN)
        yield bar(f"presence, scenes less {other}", value=means["presence difference"], op=">", bar=0.0)
        yield bar(f"TI-CLIP, scenes of {other}", value=means["ti_clip ratio"], op=">=", bar=TI_KEPT)
    yield bar("triples ranked right", value=sound["ranked right"], op=">=", bar=RANKED)
    yield bar("two of a noun not met by one box", value=sound["one box for two"], op="==", bar=0.0)


# --- the effect ---------------------------------------------------------------------------------------


def effect(place: int, seed: int, steps: int | None) -> list[dict[str, Any]]:
    """One row for each way to learn the same subjects, those of ``GROUPS[place]``."""
    base, judges, group, rows = BaseModel(source="toybox"), Judges.open(), GROUPS[place], []
    with tempfile.TemporaryDirectory() as name:
        cast = toy_cast(Path(name) / "photos", group, NUM_PHOTOS)
        for way in WAYS:
            concept = learn(base, cast, way, seed, Path(name), steps, TOLD)
            card = judged(base, judges, cast, concept, seed)
            means = {n: mean if mean == mean else None for n, (mean, _, _) in card.means().items()}
            rows.append({"way": way, "group": [f"{noun}{n}" for noun, n in group], "seed": seed, **means})
    return rows


def learn(
    base: BaseModel,
    cast: Cast,
    way: str,
    seed: int,
    scratch: Path,
    steps: int | None,
    told: PromptingStrategies,
) -> Concept:
    source, rates = WAYS[way]
    changes: dict[str, Any] = {**rates, **({"steps": steps} if steps else {})}
    if source == "photos":
        material, words = joint_subject(cast.subjects, prompt="a photo of a {}")
    else:
        recipe = SceneRecipe(
            count=8 if steps else NUM_SCENES,
            least_subjects=len(cast.subjects),
            most_subjects=len(cast.subjects),
            canvas=ComposeConfig(width=world.SIZE_PX, height=world.SIZE_PX, shadow=0.2),
            strategies=told,
            min_difference=2,
            seed=seed,
        )
        folder = scratch / "dataset"
        dataset = finish(build_dataset(folder, cast, recipe, TOYBOX, workers=1))
        words = tuple(Word(token=m.token, noun=m.noun) for m in dataset.members)
        if told.composition_token:
            words += (Word(token=told.composition_token, noun="", initial="photo"),)
        material = joint_material("scenes", words, scene_photos(dataset))
    config = replace(CustomDiffusionConfig.practical("toybox", **changes), words=words)
    *_, last = train_custom_diffusion(base, material, config, runs_root=scratch / "runs", seed=seed)
    assert isinstance(last, Done)
    return last.concept


def judged(
    base: BaseModel, judges: Judges, cast: Cast, concept: Concept, seed: int, token: str = ""
) -> CompositionCard:
    """Pictures of all subjects together in places, scored."""
    words = [f"a {member.token} {member.noun}" for member in cast.members]
    things = ", ".join(words[:-1]) + " and " + words[-1]
    prompts = [
        f"{token} a photo of {things} {place}".strip() for place in PLACES for _ in range(DRAWN_PER_PROMPT)
    ]
    seeds = [picture_seed(seed, "gen4gen", n) for n in range(len(prompts))]
    with apply_concepts(open_backbone(base), [(concept, 1.0)]) as model:
        pictures_B3HW = model.sample(prompts, seeds=seeds, steps=STEPS, guidance=GUIDANCE)
    sought = [
        sought_of(s, judges.crops, word=f"{m.token} {m.noun}")
        for s, m in zip(cast.subjects, cast.members, strict=True)
    ]
    plain = [prompt.removeprefix(token).strip() for prompt in prompts]
    return score_compositions(
        list(pictures_B3HW), plain, sought, judges.detector, judges.encoders, judge=judges.crops
    )


def summary(rows: Sequence[Mapping[str, Any]], other: str) -> dict[str, Any]:
    """Means of scenes and of another way, and paired comparisons with 95 % intervals over groups."""
    means: dict[str, Any] = {}
    groups = sorted({tuple(row["group"]) for row in rows})
    for name in ("cp_clip", "presence", "ti_clip"):
        of = {
            way: [
                statistics.fmean(r[name] for r in rows if r["way"] == way and r["group"] == list(group))
                for group in groups
            ]
            for way in ("scenes", other)
        }
        differences = [mine - theirs for mine, theirs in zip(*of.values(), strict=True)]
        low, high = bootstrap_interval(differences)
        means |= {f"{name}, {way}": statistics.fmean(values) for way, values in of.items()}
        means[f"{name} difference"] = statistics.fmean(differences)
        means[f"{name} interval"] = [v if v == v else None for v in (low, high)]
    means["cp_clip gain"] = means["cp_clip difference"] / max(means[f"cp_clip, {other}"], 1e-6)
    means["ti_clip ratio"] = means["ti_clip, scenes"] / max(means[f"ti_clip, {other}"], 1e-6)
    return means


def strategies(
    places: Sequence[int], seed: int, steps: int | None, quick: bool
) -> dict[str, dict[str, float]]:
    """Each prompting strategy alone, all, and none."""
    table: dict[str, dict[str, float]] = {}
    for told in list(STRATEGIES)[: 1 if quick else None]:
        cards = measured("gen4gen", prompted, [(place, seed, steps, told) for place in places])
        table[told] = {measure: statistics.fmean(card[measure] for card in cards) for measure in cards[0]}
    return table


def prompted(place: int, seed: int, steps: int | None, strategy: str) -> dict[str, float]:
    """Measures of ``GROUPS[place]`` learned from scenes whose captions follow a strategy."""
    base, told = BaseModel(source="toybox"), STRATEGIES[strategy]
    with tempfile.TemporaryDirectory() as name:
        cast = toy_cast(Path(name) / "photos", GROUPS[place], NUM_PHOTOS)
        concept = learn(base, cast, "scenes", seed, Path(name), steps, told)
        card = judged(base, Judges.open(), cast, concept, seed, told.composition_token)
    return {measure: card.means()[measure][0] for measure in ("cp_clip", "presence", "ti_clip")}


# --- soundness ----------------------------------------------------------------------------------------


def soundness(triples: int) -> dict[str, float]:
    """Rendered pictures whose truth is known: both subjects, one of them, two others of the same nouns."""
    found = measured("gen4gen", told_apart, [(first, first + 20) for first in range(0, triples, 20)])
    ranked, fooled = (sum(counts) for counts in zip(*found, strict=True))
    return {"triples": triples, "ranked right": ranked / triples, "one box for two": float(fooled)}


def told_apart(first: int, end: int) -> tuple[int, int]:
    """Of triples ``first`` to ``end``: how many are ranked right, and how often one box met two subjects."""
    judges, ranked, fooled = Judges.open(), 0, 0
    for number in range(first, end):
        dice = random.Random(f"soundness {number}")
        right = [world.subject(noun, 400 + number) for noun in dice.sample(world.NOUNS, 2)]
        wrong = [unlike(instance, 9400 + number) for instance in right]
        sought = [references(judges, instance, dice) for instance in right]
        pictures = [together(right, dice), together(right[:1], dice), together(wrong, dice)]
        both, missing, others = (
            score_composition(p, sought, judges.detector, judges.crops).cp_clip for p in pictures
        )
        ranked += both > missing > others
        twice = score_composition(pictures[1], [sought[0]] * 2, judges.detector, judges.crops)
        boxes = [box for box in twice.boxes.values() if box is not None]
        fooled += len(boxes) != len(set(boxes))
    return ranked, fooled


def unlike(one: world.Instance, number: int) -> world.Instance:
    """Another subject of the noun, from ``number`` on the first that shares no colour with ``one``."""
    colours = {one.look.colour, one.look.colour2}
    candidates = (world.subject(one.noun, number + 1000 * n) for n in itertools.count())
    return next(c for c in candidates if colours.isdisjoint((c.look.colour, c.look.colour2)))


def references(judges: Judges, one: world.Instance, dice: random.Random) -> Sought:
    """As ``sought_of`` has them: square crops around exact masks."""
    pictures = [world.redraw(one, dice) for _ in range(4)]
    crops = [crop_to_mask(as_tensor(p), render.render(p).masks[0]) for p in pictures]
    return Sought(name=f"{one.noun}{one.seed}", noun=one.noun, features_MD=judges.crops.encode(crops))


def together(instances: Sequence[world.Instance], dice: random.Random) -> Tensor:
    """A picture of one or two instances side by side."""
    scene = dice.choice(sorted(world.SCENES))
    places = ((17.0, 42.0), (47.0, 42.0)) if len(instances) == 2 else ((32.0, 40.0),)
    things = tuple(
        world.Thing(noun=one.noun, look=one.look, x_px=x, y_px=y, half_px=14.0 if len(places) == 2 else 18.0)
        for one, (x, y) in zip(instances, places, strict=True)
    )
    return as_tensor(world.Picture(things=things, scene=scene, relation="left" if len(things) == 2 else ""))


def as_tensor(picture: world.Picture) -> Tensor:
    return torch.from_numpy(render.image(picture).copy()).permute(2, 0, 1).float() / 255
