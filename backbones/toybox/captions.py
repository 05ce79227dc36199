"""Captions of toy pictures: exactly what ``Picture.named`` says is told, in plain English.

``a photo of a red and white striped rabbit wearing a hat flying a kite in the snow at sunset``
"""

from __future__ import annotations

from collections.abc import Iterator

from . import world
from .world import Picture, Thing


def caption(picture: Picture) -> str:
    """The caption of a picture. The nouns are always told, all else as ``picture.named`` says; of an empty
    scene it is the place and its light: ``a photo of the beach at night``."""
    if not picture.things:
        return " ".join(word for word in (picture.template, *_place(picture)) if word)
    words = [picture.template, _thing(picture, 0), *_doing(picture)]
    if len(picture.things) == 2:
        joint = world.RELATIONS[picture.relation] if "relation" in picture.named else "and"
        words += [joint, _thing(picture, 1)]
    words += [world.SCENES[picture.scene]] if "scene" in picture.named else []
    words += [world.LIGHTS[picture.light]] if "light" in picture.named else []
    return " ".join(word for word in words if word)


def prompt(noun: str, *, look: str = "", rest: str = "", template: str = "a photo of") -> str:
    """``a photo of a {look} {noun} {rest}`` with the right article."""
    return " ".join(word for word in (template, _with_article(f"{look} {noun}".strip()), rest) if word)


def corpus(count: int, seed: int = 0) -> Iterator[str]:
    """``count`` training captions, from picture number ``seed`` on."""
    for number in range(seed, seed + count):
        yield caption(world.sample_picture(number))


def _thing(picture: Picture, index: int) -> str:
    thing: Thing = picture.things[index]
    told = ("look", "look2")[index] in picture.named
    return _with_article(f"{world.look_words(thing.look)} {thing.noun}" if told else thing.noun)


def _place(picture: Picture) -> list[str]:
    _, place = world.SCENES[picture.scene].split(" ", 1)  # without "on", "in" or "under"
    return [place, world.LIGHTS[picture.light]]


def _doing(picture: Picture) -> list[str]:
    first = picture.things[0]
    worn = [world.ACCESSORIES[first.accessory]] if "accessory" in picture.named else []
    return worn + ([world.POSES[first.pose], world.ACTIONS[first.action]] if "act" in picture.named else [])


def _with_article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words
