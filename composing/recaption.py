"""Recaption: what a scene shows, every subject named once by "token noun", positions and background said.

Gen4Gen (Yeh et al. 2024) captions its pictures with a vision-language model and puts tokens in; that stage
was not released. A caption comes from a layout by rule, or from a model (``captioners.py``), and is then
held to the same rule: each subject exactly once.
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from PIL.Image import Image

from ..core.paths import slug
from .layout import Item, Layout

log = logging.getLogger(__name__)

MAX_CHARS = 400  # CLIP reads 77 tokens, about 300 characters


@dataclass(frozen=True, kw_only=True)
class Named:
    """A subject as captions call it: ``token`` before ``noun``. ``x`` is where it stands, 0 left to 1
    right."""

    token: str
    noun: str
    x: float = 0.5

    @property
    def words(self) -> str:
        return f"{self.token} {self.noun}".strip()


@dataclass(frozen=True, kw_only=True)
class PromptingStrategies:
    """The paper's "empirical prompting strategies". The text at hand only says that there are such; what each
    is, is our reading of it, none is confirmed."""

    composition_token: str = ""  # our reading: one word for the arrangement as a whole, such as <scene>
    repeat_tokens: bool = False  # our reading: every subject named again at the end, so that none is dropped
    background: bool = True  # our reading: the place is said, so that no subject's token soaks it up


STATUS = dict.fromkeys(PromptingStrategies.__dataclass_fields__, "our reading")


class Captioner(Protocol):
    """A way to describe a picture in plain words, with the subjects' nouns."""

    @property
    def name(self) -> str: ...

    def describe(self, image: Image, layout: Layout, *, seed: int) -> str: ...


def token_of(name: str) -> str:
    """``<name>``: the same word that Textual Inversion learns for a subject of that name."""
    return f"<{slug(name).replace(' ', '-')}>"


def names_of(layout: Layout, *, tokens: bool = True) -> list[Named]:
    """A layout's subjects from left to right."""
    rows = [
        Named(token=token_of(item.subject) if tokens else "", noun=item.noun, x=item.box[0] + item.box[2] / 2)
        for item in layout.items
    ]
    return sorted(rows, key=lambda named: named.x)


def caption_scene(
    captioner: Captioner,
    image: Image,
    layout: Layout,
    strategies: PromptingStrategies | None = None,
    *,
    seed: int = 0,
) -> tuple[str, list[str]]:
    """The caption with tokens, and warnings of what had to be mended in the captioner's own."""
    strategies = strategies or PromptingStrategies()
    told = layout if strategies.background else replace(layout, scene="")
    plain = tidy(captioner.describe(image, told, seed=seed))
    names = names_of(layout)
    caption, warnings = with_tokens(plain, names)
    if strategies.background and layout.scene and not _tells(caption, layout.scene):
        caption = f"{caption}, {layout.scene}"
        warnings.append("the background was not said and was added")
    return apply_strategies(caption, names, strategies), warnings


def apply_strategies(caption: str, names: Sequence[Named], strategies: PromptingStrategies) -> str:
    if strategies.repeat_tokens:
        caption = f"{caption}, {_listed([named.words for named in names])}"
    if strategies.composition_token:
        caption = f"{strategies.composition_token} {caption}"
    return caption


# --- by rule ------------------------------------------------------------------------------------------

_OPENINGS = ("a photo of {things}{place}", "{things}{place}", "{place_first}{things}")


@dataclass(frozen=True)
class RuleCaptioner:
    """From the layout alone: "a photo of a cat on the left and a dog on the right in a garden"."""

    name: str = "rules"

    def describe(self, image: Image, layout: Layout, *, seed: int) -> str:
        dice = random.Random(f"caption {seed}")
        items = sorted(layout.items, key=lambda item: item.box[0] + item.box[2] / 2)
        things = _listed(
            [f"{article(i.noun)} {i.noun} {w}".strip() for i, w in zip(items, places(items), strict=True)]
        )
        opening = dice.choice(_OPENINGS if layout.scene else _OPENINGS[:1])
        return opening.format(
            things=things,
            place=f", {layout.scene}" if layout.scene else "",
            place_first=f"{layout.scene}, " if layout.scene else "",
        )


def places(items: Sequence[Item]) -> list[str]:
    """Where each thing is, in words; ``items`` are from left to right."""
    if len(items) == 1:
        return ["" if 0.35 < _middle(items[0]) < 0.65 else _side(_middle(items[0]))]
    spread = _middle(items[-1]) - _middle(items[0])
    if spread < 0.12:  # one behind the other
        order = sorted(items, key=lambda item: item.box[1] + item.box[3])
        return [("in front" if item is order[-1] else "behind") for item in items]
    if len(items) == 2:
        return ["on the left", "on the right"]
    words = [_side(_middle(item)) for item in items]
    if len(items) == 3 and len(set(words)) < 3:
        words = ["on the left", "in the middle", "on the right"]
    return [_deeper(word, n, words, items) for n, word in enumerate(words)]


def _deeper(word: str, n: int, words: Sequence[str], items: Sequence[Item]) -> str:
    """Things on one side are told apart by their depth."""
    beside = [m for m, other in enumerate(words) if other == word]
    if len(beside) < 2:
        return word
    nearest = max(beside, key=lambda m: items[m].box[1] + items[m].box[3])
    return f"{word} in front" if n == nearest else f"{word} behind"


def _middle(item: Item) -> float:
    return item.box[0] + item.box[2] / 2


def _side(x: float) -> str:
    return "on the left" if x < 0.38 else "on the right" if x > 0.62 else "in the middle"


def article(noun: str) -> str:
    return "an" if noun[:1].lower() in tuple("aeiou") else "a"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


# --- held to the rule ---------------------------------------------------------------------------------


def tidy(text: str) -> str:
    """One line of plain words from whatever a model wrote: no brackets (ComfyUI reads them as weights), no
    signs that prompts give a meaning to, at most ``MAX_CHARS`` cut at a word."""
    text = re.sub(r"[^\w\s.,;:'!?-]+", " ", text.replace("\u2019", "'"))
    text = " ".join(text.split()).strip(" ,;:.")
    return text if len(text) <= MAX_CHARS else text[:MAX_CHARS].rsplit(" ", 1)[0].rstrip(" ,;:.")


_COUNTS = r"(?:two|three|four|both|several|some|the|these|a pair of|a couple of)"


def with_tokens(text: str, names: Sequence[Named]) -> tuple[str, list[str]]:
    """Every subject once as "token noun": its first mention, longest nouns first; two of one noun from left
    to right. Later mentions become "it"; a subject that was dropped is added at the end.

    Returns the caption and a warning for everything that had to be added.
    """
    slots: list[str] = []
    warnings: list[str] = []
    for noun in sorted({named.noun for named in names}, key=lambda noun: (-len(noun), noun)):
        waiting = [named for named in sorted(names, key=lambda named: named.x) if named.noun == noun]
        text = _plural_to_slots(text, noun, waiting, slots)
        text = _mentions_to_slots(text, noun, waiting, slots)
        for named in waiting:
            slots.append(f"{article(noun)} {named.words}")
            text = f"{text}, with \x00{len(slots) - 1}\x01"
            warnings.append(
                f"the caption dropped the {noun} {named.token}, which was added".replace("  ", " ")
            )
    for number, words in enumerate(slots):
        text = text.replace(f"\x00{number}\x01", words)
    return " ".join(text.split()), warnings


def _plural_to_slots(text: str, noun: str, waiting: list[Named], slots: list[str]) -> str:
    """ "two dogs" names both dogs."""
    if len(waiting) < 2:
        return text
    pattern = re.compile(rf"(?:\b{_COUNTS}\s+)?\b{re.escape(noun)}(?:s|es)\b", re.IGNORECASE)

    def put(match: re.Match[str]) -> str:
        if not waiting:
            return "they"
        slots.append(_listed([f"{article(noun)} {named.words}" for named in waiting]))
        waiting.clear()
        return f"\x00{len(slots) - 1}\x01"

    return pattern.sub(put, text)


def _mentions_to_slots(text: str, noun: str, waiting: list[Named], slots: list[str]) -> str:
    pattern = re.compile(
        rf"(\b(?:the|a|an|this|that|its|his|her)\s+)?\b{re.escape(noun)}(?:s|es)?\b", re.IGNORECASE
    )

    def put(match: re.Match[str]) -> str:
        if not waiting:
            return "it"
        before = match.group(1) or ""
        slots.append(f"{_agreeing(before, noun)}{waiting.pop(0).words}")
        return f"\x00{len(slots) - 1}\x01"

    return pattern.sub(put, text)


def _agreeing(before: str, noun: str) -> str:
    """ "an" before a noun's token stays as the noun wants it: tokens are read as the noun."""
    return before if before.lower().strip() not in ("a", "an") else f"{article(noun)} "


def _tells(caption: str, scene: str) -> bool:
    words = {word for word in re.findall(r"[a-z]+", scene.lower()) if len(word) > 3}
    return not words or bool(words & set(re.findall(r"[a-z]+", caption.lower())))


def mentions(caption: str, named: Named) -> int:
    """How often a caption names a subject by its token (by its noun, where it has none)."""
    word = named.token or named.noun
    before = r"(?<!\w)" if re.match(r"\w", word) else ""
    after = r"(?!\w)" if re.search(r"\w$", word) else ""
    return len(re.findall(before + re.escape(word) + after, caption))


def for_one_subject(caption: str, own: Named, others: Sequence[Named]) -> str:
    """A scene's caption as a method for one subject reads it: {} for its own words, nouns for the others."""
    for other in others:
        caption = caption.replace(other.words, other.noun)
        caption = caption.replace(other.token, other.noun) if other.token else caption
    pattern = re.compile(rf"(?:\b(?:a|an|the)\s+)?{re.escape(own.words)}", re.IGNORECASE)
    return pattern.sub("{}", caption, count=1).replace(own.words, own.noun)
