"""The toy world: what there is, what a picture of it is, and how pictures and subjects are drawn by lot.

A ``Picture`` says everything about one 64 x 64 picture; ``render.render`` draws it, ``captions.caption``
words it. An ``Instance`` is a subject: a noun with a fixed odd look that its captions never name.

Evaluation is apart from training by construction: a hash decides for every *caption* (what it names,
not how it is worded) and every *odd look* whether it belongs to evaluation. ``sample_picture(...,
split="train")`` never draws one that does; ``subject`` and ``split="eval"`` draw nothing else.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

SIZE_PX = 64

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 36, 40),
    "orange": (246, 136, 26),
    "yellow": (250, 222, 56),
    "green": (44, 160, 66),
    "blue": (38, 92, 222),
    "purple": (136, 58, 186),
    "pink": (252, 150, 196),
    "brown": (126, 78, 44),
    "white": (246, 246, 246),
    "black": (42, 42, 48),
}
# Colours that only odd looks wear; no caption names them.
ODD_COLOURS: dict[str, tuple[int, int, int]] = {
    "turquoise": (40, 200, 200),
    "lime": (164, 226, 50),
    "maroon": (122, 24, 60),
    "navy": (28, 40, 112),
    "tan": (214, 178, 130),
    "grey": (140, 144, 150),
}
LIVING = ("rabbit", "cat", "bear", "bird", "fish", "turtle", "elephant")
THINGS = ("car", "cup", "boat", "rocket", "robot", "umbrella", "house")
NOUNS = LIVING + THINGS
PATTERNS = ("plain", "striped", "dotted", "checked", "two-tone")
MARKS = ("none", "star", "patch", "spots", "band")
SCENES: dict[str, str] = {
    "beach": "on the beach",
    "forest": "in the forest",
    "snow": "in the snow",
    "desert": "in the desert",
    "city": "in the city",
    "kitchen": "in the kitchen",
    "space": "in space",
    "meadow": "in a meadow",
    "water": "under water",
    "studio": "in a studio",
}
ACCESSORIES: dict[str, str] = {
    "none": "",
    "hat": "wearing a hat",
    "crown": "wearing a crown",
    "sunglasses": "wearing sunglasses",
    "scarf": "wearing a scarf",
    "balloon": "with a balloon",
}
POSES: dict[str, str] = {
    "standing": "",
    "jumping": "jumping",
    "upside down": "upside down",
    "lying": "lying on its side",
}
ACTIONS: dict[str, str] = {
    "none": "",
    "ball": "playing with a ball",
    "flag": "holding a flag",
    "kite": "flying a kite",
    "skateboard": "riding a skateboard",
    "book": "reading a book",
    "sleeping": "sleeping",
}
RELATIONS: dict[str, str] = {
    "left": "to the left of",
    "right": "to the right of",
    "above": "on top of",
    "below": "under",
}
LIGHTS: dict[str, str] = {"day": "", "sunset": "at sunset", "night": "at night"}
NUM_VARIANTS = 16  # drawings of a scene
TEMPLATES = ("a photo of", "a picture of", "an image of", "")


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a thing looks. ``stretch`` and ``girth`` in [-1, 1] change its proportions; 0 is the usual."""

    colour: str
    pattern: str = "plain"
    colour2: str = "white"
    turn: int = 0  # degrees the pattern is turned by: 0, 45 or 90
    mark: str = "none"
    mark_colour: str = "yellow"
    stretch: float = 0.0
    girth: float = 0.0

    @property
    def key(self) -> str:
        """The look's discrete part: what the split of evaluation from training is decided on."""
        return "|".join(
            (self.pattern, self.colour, self.colour2, str(self.turn), self.mark, self.mark_colour)
        )


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object: a noun in a look, doing something. ``half_px`` is half its height; (x, y) its centre."""

    noun: str
    look: Look
    pose: str = "standing"
    accessory: str = "none"
    action: str = "none"
    x_px: float = 32.0
    y_px: float = 38.0
    half_px: float = 20.0
    mirrored: bool = False


@dataclass(frozen=True, kw_only=True)
class Picture:
    """All that is in a picture. ``named`` holds what its caption tells besides the nouns:
    any of look, look2, scene, light, accessory, act, relation."""

    things: tuple[Thing, ...]
    scene: str
    relation: str = ""
    light: str = "day"
    variant: int = 0  # which of the NUM_VARIANTS drawings of the scene
    template: str = "a photo of"
    named: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Instance:
    """A subject: ``noun`` is all that captions call it; ``look`` is what there is to learn."""

    noun: str
    look: Look
    seed: int = 0


def reserved(key: str, one_in: int = 6) -> bool:
    """Whether a key belongs to evaluation: one in ``one_in`` does, by hash."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % one_in == 0


def look_reserved(noun: str, look: Look) -> bool:
    """Whether an odd look belongs to evaluation (subjects) rather than training."""
    return reserved(f"look|{noun}|{look.key}")


def caption_key(picture: Picture) -> str:
    """What the caption names, in a fixed order: two captions with one key say the same."""
    named, first = picture.named, picture.things[0]
    facts = [
        t.noun + ("=" + look_words(t.look) if tag in named else "")
        for t, tag in zip(picture.things, ("look", "look2"), strict=False)
    ]
    if len(picture.things) == 2 and "relation" in named:
        facts.append(picture.relation)
    facts += [picture.scene] * ("scene" in named) + [picture.light] * ("light" in named)
    facts += [first.accessory] * ("accessory" in named) + [first.pose + "," + first.action] * ("act" in named)
    return "|".join(facts)


def caption_reserved(picture: Picture) -> bool:
    """Whether a caption belongs to evaluation. A bare noun never does: there are too few of them."""
    key = caption_key(picture)
    return ("|" in key or "=" in key) and reserved(f"caption|{key}")


def look_words(look: Look) -> str:
    """``red``, or ``red and white striped``."""
    return look.colour if look.pattern == "plain" else f"{look.colour} and {look.colour2} {look.pattern}"


def _pick_look(rng: random.Random) -> Look:
    """A look that a caption can name fully: half of them plain."""
    colour, colour2 = rng.sample(sorted(COLOURS), 2)
    pattern = "plain" if rng.random() < 0.5 else rng.choice(PATTERNS[1:])
    return Look(colour=colour, pattern=pattern, colour2=colour2)


def odd_look(rng: random.Random) -> Look:
    """A look that no caption names: any colours, turned patterns, marks and proportions."""
    colour, colour2, mark_colour = rng.sample(sorted(COLOURS) + sorted(ODD_COLOURS), 3)
    return Look(
        colour=colour,
        colour2=colour2,
        pattern=rng.choice(PATTERNS),
        turn=rng.choice((0, 45, 90)),
        mark=rng.choice(MARKS),
        mark_colour=mark_colour,
        stretch=round(rng.uniform(-1, 1), 2),
        girth=round(rng.uniform(-1, 1), 2),
    )


def subject(noun: str, seed: int) -> Instance:
    """The subject number ``seed`` of a noun: an odd look with a pattern and a mark, never trained on."""
    if noun not in NOUNS:
        from ...core.errors import LikenessError

        raise LikenessError(f"Toybox has no noun '{noun}'", expected=", ".join(NOUNS))
    rng = random.Random(f"subject|{noun}|{seed}")
    while True:
        look = odd_look(rng)
        if look.pattern != "plain" and look.mark != "none" and look_reserved(noun, look):
            return Instance(noun=noun, look=look, seed=seed)


def subject_pictures(instance: Instance, count: int, seed: int) -> list[Picture]:
    """``count`` pictures of a subject drawn anew; no two captions alike, none of them trained on."""
    rng = random.Random(f"pictures|{instance.noun}|{instance.look.key}|{seed}")
    pictures: dict[str, Picture] = {}
    while len(pictures) < count:
        picture = redraw(instance, rng)
        key = caption_key(picture)
        if caption_reserved(picture) and (key not in pictures or len(pictures) > 300):
            pictures.setdefault(key if key not in pictures else f"{key}#{len(pictures)}", picture)
    return list(pictures.values())


def redraw(instance: Instance, rng: random.Random) -> Picture:
    """One more picture of an instance: new scene, pose, accessory, place, size and light, all named."""
    thing = _place_one(_dress(instance.noun, instance.look, rng), rng)
    picture = _surround((thing,), rng)
    named = {"scene"} | ({"light"} if picture.light != "day" else set()) | _worn(thing)
    return replace(picture, named=frozenset(named), template=TEMPLATES[0])


def sample_picture(seed: int, *, split: str = "train") -> Picture:
    """Picture number ``seed`` of a split (``train`` or ``eval``): nothing named in one is in the other."""
    rng = random.Random(f"{split}|{seed}")
    while True:
        picture = _sample(rng)
        odd = split == "train" and any(
            look_reserved(t.noun, t.look) for t in picture.things if not nameable(t.look)
        )
        if not odd and caption_reserved(picture) == (split == "eval"):
            return picture


def crowd(seed: int) -> Picture:
    """Picture number ``seed`` of one to four things of one size anywhere, for what looks at pictures: two
    things may be of one noun. No caption tells it."""
    rng = random.Random(f"crowd|{seed}")
    half, things = rng.uniform(8.0, 17.0), list[Thing]()
    for _ in range(rng.randint(1, 4)):
        noun, room = rng.choice(NOUNS), SIZE_PX / 2 - half
        look = _any_look(rng, odd=0.5)
        while not nameable(look) and look_reserved(noun, look):
            look = _any_look(rng, odd=0.5)
        place = next((p for p in (_anywhere(rng, room) for _ in range(30)) if _free(p, things, half)), None)
        if place is not None:
            own = half * rng.uniform(0.92, 1.08)
            mirrored = rng.random() < 0.5
            things.append(
                Thing(noun=noun, look=look, x_px=place[0], y_px=place[1], half_px=own, mirrored=mirrored)
            )
    return _surround(tuple(things), rng)


def _anywhere(rng: random.Random, room: float) -> tuple[float, float]:
    middle = SIZE_PX / 2
    return middle + rng.uniform(-room, room), middle + rng.uniform(-room, room)


def _free(place: tuple[float, float], things: Sequence[Thing], half: float) -> bool:
    """Whether things of that size would hide little of each other."""
    return all(max(abs(place[0] - t.x_px), abs(place[1] - t.y_px)) > 1.8 * half for t in things)


def empty_scenes() -> list[Picture]:
    """Every drawing of every scene in every light with nothing in it, its light named: what a place is."""
    return [
        Picture(
            things=(),
            scene=scene,
            light=light,
            variant=variant,
            template=TEMPLATES[variant % len(TEMPLATES)],
            named=frozenset({"scene", "light"}),
        )
        for scene in sorted(SCENES)
        for light in LIGHTS
        for variant in range(NUM_VARIANTS)
    ]


def renamed(picture: Picture, seed: int, *, split: str = "train") -> Picture:
    """The same picture with other things named in its caption; the split is respected."""
    rng = random.Random(f"renamed|{split}|{seed}")
    for _ in range(40):
        other = replace(picture, named=_named(picture, rng), template=_template(rng))
        if caption_reserved(other) == (split == "eval"):
            return other
    return picture


def fully_named(picture: Picture) -> Picture:
    """The same picture with all told that words can tell; an odd look stays untold."""
    first = picture.things[0]
    named = {"scene"} | ({"light"} if picture.light != "day" else set()) | _worn(first)
    named |= {"relation"} if picture.relation else set()
    named |= {
        tag for thing, tag in zip(picture.things, ("look", "look2"), strict=False) if nameable(thing.look)
    }
    return replace(picture, named=frozenset(named))


def nameable(look: Look) -> bool:
    """Whether words can tell all of a look."""
    return (
        look.colour in COLOURS and look.mark == "none" and look.turn == 0 and not (look.stretch or look.girth)
    )


def _sample(rng: random.Random) -> Picture:
    things = _two(rng) if rng.random() < 0.25 else (_one(rng),)
    relation = rng.choice(sorted(RELATIONS)) if len(things) == 2 else ""
    placed = _place_two(things, relation, rng) if relation else (_place_one(things[0], rng),)
    picture = _surround(placed, rng, relation)
    return replace(picture, named=_named(picture, rng), template=_template(rng))


def _one(rng: random.Random) -> Thing:
    return _dress(rng.choice(NOUNS), _any_look(rng, odd=0.35), rng)


def _two(rng: random.Random) -> tuple[Thing, Thing]:
    first, second = (Thing(noun=n, look=_any_look(rng, odd=0.15)) for n in rng.sample(NOUNS, 2))
    worn = rng.choice(sorted(set(ACCESSORIES) - {"none", "balloon"})) if rng.random() < 0.2 else "none"
    return replace(first, accessory=worn), second


def _any_look(rng: random.Random, odd: float) -> Look:
    return odd_look(rng) if rng.random() < odd else _pick_look(rng)


def _dress(noun: str, look: Look, rng: random.Random) -> Thing:
    """Accessory and either a pose or an action, each absent about half the time."""
    accessory = rng.choice(sorted(set(ACCESSORIES) - {"none"})) if rng.random() < 0.45 else "none"
    lot = rng.random()
    pose = rng.choice(sorted(set(POSES) - {"standing"})) if lot < 0.22 else "standing"
    action = rng.choice(sorted(set(ACTIONS) - {"none"})) if lot > 0.62 else "none"
    if accessory == "balloon" and action == "sleeping":
        action = "none"
    return Thing(noun=noun, look=look, accessory=accessory, pose=pose, action=action)


def _place_one(thing: Thing, rng: random.Random) -> Thing:
    tall = thing.accessory in ("hat", "crown") or thing.pose != "standing" or thing.action != "none"
    half = rng.uniform(16.5, 18.5) if tall else rng.uniform(18.0, 21.0)
    y = 60.0 - half - rng.uniform(0, 3) - (8.0 if thing.pose == "jumping" else 0.0)
    y -= 4.0 if thing.action == "skateboard" else 0.0
    return replace(
        thing,
        x_px=round(32 + rng.uniform(-4, 4), 2),
        y_px=round(y, 2),
        half_px=round(half, 2),
        mirrored=rng.random() < 0.5,
    )


PLACES_OF_TWO = {
    "left": ((17, 42), (47, 42)),
    "right": ((47, 42), (17, 42)),
    "above": ((32, 18), (32, 46)),
    "below": ((32, 46), (32, 18)),
}


def _place_two(things: tuple[Thing, ...], relation: str, rng: random.Random) -> tuple[Thing, ...]:
    placed = []
    for thing, (x, y) in zip(things, PLACES_OF_TWO[relation], strict=True):
        sway = rng.uniform(-3, 3) if relation in ("above", "below") else rng.uniform(-1.5, 1.5)
        placed.append(
            replace(
                thing,
                x_px=round(x + sway, 2),
                y_px=round(y + rng.uniform(-1.5, 1.5), 2),
                half_px=round(rng.uniform(13.0, 14.5), 2),
                mirrored=rng.random() < 0.5,
            )
        )
    return tuple(placed)


def _surround(things: tuple[Thing, ...], rng: random.Random, relation: str = "") -> Picture:
    light = "day" if rng.random() < 0.7 else rng.choice(("sunset", "night"))
    return Picture(
        things=things,
        scene=rng.choice(sorted(SCENES)),
        relation=relation,
        light=light,
        variant=rng.randrange(NUM_VARIANTS),
    )


def _template(rng: random.Random) -> str:
    return rng.choices(TEMPLATES, weights=(5, 2, 1, 2))[0]


def _worn(thing: Thing) -> set[str]:
    worn = {"accessory"} if thing.accessory != "none" else set()
    return worn | ({"act"} if (thing.pose, thing.action) != ("standing", "none") else set())


def _named(picture: Picture, rng: random.Random) -> frozenset[str]:
    """By lot: what is worn or done is nearly always told, the scene mostly, a nameable look often."""
    chances = {"scene": 0.8, "light": 0.7, "accessory": 0.93, "act": 0.93, "relation": 0.7}
    there = {"scene"} | ({"light"} if picture.light != "day" else set()) | _worn(picture.things[0])
    there |= {"relation"} if picture.relation else set()
    named = {fact for fact in sorted(there) if rng.random() < chances[fact]}
    for thing, tag in zip(picture.things, ("look", "look2"), strict=False):
        if nameable(thing.look) and rng.random() < 0.8:
            named.add(tag)
    return frozenset(named)
