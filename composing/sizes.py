"""How large things are beside each other, and what they stand on: the rule-based proposer's knowledge.

Gen4Gen asks a language model for size ratios between 0.4 and 1. Here a table of real sizes answers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

Support = Literal["ground", "table", "wall", "air"]
Value = TypeVar("Value")

SMALLEST = 0.4  # of the largest thing: the reference's own least ratio, below which nothing can be learned
# Real sizes differ by hundreds; in a picture they must differ by at most 1 / SMALLEST.
COMPRESSION = 0.35  # exponent of a real ratio: a cup (10 cm) beside a sofa (200 cm) is 0.35 -> SMALLEST

# Longest edge as usually seen, in cm: our own estimates of everyday things, good to a factor of two.
SIZES_CM: Mapping[str, float] = {
    **dict.fromkeys(("cup", "mug", "can", "apple", "orange", "mouse", "watch", "ball", "egg"), 10),
    **dict.fromkeys(
        ("berries bowl", "bowl", "clock", "candle", "glasses", "sunglasses", "toy", "camera"), 16
    ),
    **dict.fromkeys(("teapot", "vase", "book", "bottle", "shoe", "sneaker", "boot", "hat", "duck toy"), 25),
    **dict.fromkeys(("plushie", "stuffed animal", "teddy bear", "doll", "robot toy", "monster toy"), 30),
    **dict.fromkeys(("bird", "rabbit", "hen", "duck", "turtle", "pot", "wooden pot", "lamp", "balloon"), 35),
    **dict.fromkeys(("cat", "backpack", "bag", "guitar case", "painting", "kite", "fish", "fox"), 50),
    **dict.fromkeys(("dog", "suitcase", "flower", "plant", "houseplant", "umbrella", "chair", "toilet"), 80),
    **dict.fromkeys(("guitar", "bicycle", "bike", "table", "wolf", "person", "robot", "sheep"), 150),
    **dict.fromkeys(("sofa", "couch", "motorbike", "motorcycle", "horse", "cow", "lion", "bear"), 200),
    **dict.fromkeys(("car", "boat", "tent", "elephant", "camper van", "van"), 400),
    **dict.fromkeys(("truck", "bus", "rocket", "house", "tree", "barn", "airplane", "plane", "ship"), 900),
}
UNKNOWN_CM = 50.0  # a thing one could carry

# What does not stand on the ground. Everything else does.
SUPPORTS: Mapping[str, Support] = {
    **dict.fromkeys(("painting", "clock", "picture", "mirror", "poster"), "wall"),
    **dict.fromkeys(("kite", "balloon", "airplane", "plane", "rocket", "helicopter"), "air"),
}


def size_cm(noun: str) -> float:
    """Of the longest name in the table that ``noun`` ends with ("fancy boot" is a boot)."""
    return _lookup(noun, SIZES_CM, UNKNOWN_CM)


def support(noun: str) -> Support:
    """What it rests on or hangs from."""
    return _lookup(noun, SUPPORTS, "ground")


def ratios(nouns: Sequence[str]) -> list[float]:
    """Each thing's longest edge beside the largest one's, from ``SMALLEST`` to 1."""
    sizes = [size_cm(noun) for noun in nouns]
    largest = max(sizes)
    return [max(SMALLEST, (size / largest) ** COMPRESSION) for size in sizes]


def _lookup(noun: str, table: Mapping[str, Value], default: Value) -> Value:
    words = re.sub(r"[^a-z0-9]+", " ", noun.lower()).split()
    for start in range(len(words)):
        for end in range(len(words), start, -1):
            name = " ".join(words[start:end])
            for form in (name, name.removesuffix("s")):
                if form in table:
                    return table[form]
    return default
