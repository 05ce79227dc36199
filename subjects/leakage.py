"""What would make a held-out score a lie: a test photo that was trained on, a caption that tells the look.

Test photos are compared with training photos by a perceptual hash, which sees through scaling
and compression. Captions may say what the subject does and where it is; they must not say what it looks like.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .dataset import SLOT, Dataset, Entry

HASH_EDGE = 16  # bits per side: 256 in all
NEAR_BITS = 26  # of 256 that may differ: a tenth. Unrelated photos differ in about half
# Words for a look. A caption that has one next to its subject tells what was to be learned.
LOOK = frozenset(
    re.findall(
        r"\S+",
        """
        black white grey gray silver golden gold brown tan beige cream red orange yellow green blue navy
        purple pink maroon turquoise teal lime colourful colorful multicolored dark light pale bright
        striped spotted dotted checked checkered patterned speckled brindle tabby calico plain two-tone shiny
        matte glossy transparent wooden metal metallic plastic ceramic glass leather plush fabric furry fluffy
        curly wrinkled shaggy short-haired long-haired fuzzy smooth rusty vintage
        small little tiny large big huge tall short round fat thin chubby slender cute
        """,
    )
)
# Parts of a body or thing: "its brown fur" describes the subject wherever it stands.
PARTS = frozenset(
    re.findall(r"\S+", "fur coat hair feathers ears eyes nose tail paws legs face body skin shell wings mane")
)
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*|\{\}")
_BEFORE = re.compile(
    rf"\b(a|an|the|one|this|that)\s+((?:[\w-]+,?\s+){{1,3}}){re.escape(SLOT)}", re.IGNORECASE
)
_WITH = re.compile(
    rf"(?:,)?\s+(?:with|has|having)\s+(?:(?:its|his|her|a|an|the)\s+)?(?:[\w-]+,?\s+(?:and\s+)?){{1,4}}?"
    rf"(?:{'|'.join(sorted(PARTS))})\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Leak:
    """``kind`` is "photo" or "caption"; ``where`` names the photo, or photo and caption number."""

    kind: str
    subject: str
    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.subject}, {self.where}: {self.why}"


def find_leaks(dataset: Dataset) -> list[Leak]:
    """Every leak of a dataset, photos first."""
    return [leak for entry in dataset.entries for leak in (*photo_leaks(entry), *caption_leaks(entry))]


def photo_leaks(entry: Entry) -> Iterator[Leak]:
    """Test photos that are nearly the same picture as a training photo."""
    trained = [(photo, perceptual_hash(photo.open())) for photo in entry.subject.photos]
    for photo in entry.subject.held_out:
        bits = perceptual_hash(photo.open())
        for other, other_bits in trained:
            apart = int((bits != other_bits).sum())
            if apart <= NEAR_BITS:
                why = (
                    f"nearly the same picture as {other.path.name}, which is trained on "
                    f"({apart} of 256 bits differ)"
                )
                yield Leak("photo", entry.name, photo.path.name, why)


def caption_leaks(entry: Entry) -> Iterator[Leak]:
    """Captions that name the subject's look or kind."""
    for photo, texts in zip(entry.subject.held_out, entry.captions, strict=True):
        for number, text in enumerate(texts):
            if told := tells(text, [entry.subject.class_noun, *entry.subject.description.split()]):
                why = f"tells {', '.join(map(repr, told))} of the subject in {text[:80]!r}"
                yield Leak("caption", entry.name, f"{photo.path.name} {number}", why)


def tells(caption: str, names: Sequence[str] = ()) -> list[str]:
    """What in a caption gives the subject away: its kind, words for a look before {}, parts with a look."""
    words = _WORD.findall(caption.lower())
    told = [
        name for name in names if name and re.search(rf"\b{re.escape(name.lower())}s?\b", caption.lower())
    ]
    for place, word in enumerate(words):
        if word == SLOT:
            told += [w for w in _modifiers(words[:place]) if w in LOOK]
        if word in PARTS and place and words[place - 1] in LOOK:
            told.append(f"{words[place - 1]} {word}")
    return list(dict.fromkeys(told))


def neutral(caption: str, names: Sequence[str] = ()) -> str:
    """The caption without what gives the subject away, with {} in the subject's place.

    The first noun phrase that names the subject (``names``, longest first) becomes ``{}`` with its article;
    words for a look in front of it go, and so do clauses that describe its body.
    """
    text = " ".join(caption.split())
    if SLOT not in text:
        text = _slotted(text, names)
    for name in sorted(filter(None, names), key=len, reverse=True):
        text = re.sub(rf"\b(?:another|the same)?\s*{re.escape(name)}s?\b", "", text, flags=re.IGNORECASE)
    text = _BEFORE.sub(_kept_modifiers, text)
    text = _WITH.sub(lambda m: "" if _has_look(m[0]) else m[0], text)
    text = re.sub(r"\s+([,.;])", r"\1", " ".join(text.split()))
    return re.sub(r"\b([Aa])n (\{\})", r"\1 \2", text)


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """Difference hash, (256,) bool: is each cell of a small grey copy darker than its right neighbour?"""
    grey = image.convert("L").resize((HASH_EDGE + 1, HASH_EDGE), Image.Resampling.LANCZOS)
    values = np.asarray(grey, dtype=np.int16)
    bits: np.ndarray = (values[:, 1:] > values[:, :-1]).flatten()
    return bits


def _modifiers(words: Sequence[str]) -> list[str]:
    """Words between the last article and the end."""
    found: list[str] = []
    for word in reversed(words[-4:]):
        if word in ("a", "an", "the", "one", "this", "that", "of", "with", "and", SLOT):
            break
        found.append(word)
    return found[::-1]


def _slotted(text: str, names: Sequence[str]) -> str:
    for name in sorted(filter(None, names), key=len, reverse=True):
        phrase = rf"\b((?:an?|the|one|this)\s+)?((?:[\w-]+,?\s+){{0,3}}?){re.escape(name)}\b"
        match = re.search(phrase, text, flags=re.IGNORECASE)
        if match:
            article = match[1] or ""
            kept = match[2] if article else ""
            return text[: match.start()] + article + kept + SLOT + text[match.end() :]
    return text


def _kept_modifiers(match: re.Match[str]) -> str:
    """An article, the modifiers that tell no look, and the slot."""
    kept = [word for word in match[2].split() if word.lower().strip(",") not in LOOK]
    return " ".join([match[1], *kept, SLOT])


def _has_look(clause: str) -> bool:
    return any(word.lower() in LOOK for word in _WORD.findall(clause))
