"""What a captioner is asked and how its answer is read.

The paper lets Qwen2-VL write ten captions per test photo, then has a language model and people mend them and
take out what tells of the subject (appendix 10). Here the model is asked not to tell it in the first place,
``leakage`` takes out what it told all the same, and a person has the last word: captions are a plain file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Protocol

from PIL import Image

from ..dataset import SLOT
from ..leakage import neutral, tells

MAX_CAPTION = 300  # characters: CLIP reads 77 tokens
MAX_ANSWER, MAX_CAPTIONS = 100_000, 200  # characters and captions that are read of an answer
_BULLET = re.compile(r"""^\s*(?:[-*\u2022]|\(?\d{1,2}[.):])?\s*["']?(.*?)["']?,?\s*$""")
_STAND_INS = ("[SUBJECT]", "<SUBJECT>", "{SUBJECT}", "SUBJECT", "[subject]", "{ }")


class Captioner(Protocol):
    """Writes captions. ``id`` names the model, for records."""

    id: str

    def write(self, image: Image.Image, noun: str, count: int, attempt: int) -> str:
        """An answer to ``ask(noun, count)`` for this picture; another one for another ``attempt``."""
        ...


def ask(noun: str, count: int) -> str:
    """The request, in words."""
    return (
        f"Write {count} different captions of this photo, each one sentence of at most 30 words. "
        f"Call the main {noun} only [SUBJECT], once in every caption, after an article: 'a [SUBJECT]'. "
        f"Describe what [SUBJECT] does, what it wears, where it is and what is around it. "
        f"Never describe [SUBJECT] itself: no colour, pattern, material, size, breed, brand or kind. "
        f"Answer with a JSON list of {count} strings and nothing else."
    )


def read_answer(answer: str, names: Sequence[str]) -> list[str]:
    """The usable captions of an answer, cleaned, with {} for the subject; none when it is nonsense.

    A JSON list is expected; a numbered or bulleted one is read too. Captions that still tell of the subject,
    or do not name it, are left out.
    """
    captions = [_clean(text, names) for text in _texts(answer[:MAX_ANSWER])[:MAX_CAPTIONS]]
    good = [text for text in captions if text.count(SLOT) == 1]
    return list(dict.fromkeys(text for text in good if not tells(text, names)))


def _texts(answer: str) -> list[str]:
    start, end = answer.find("["), answer.rfind("]")
    if 0 <= start < end:
        try:
            values = json.loads(answer[start : end + 1])
        except (ValueError, RecursionError):
            values = None
        if isinstance(values, list):
            return [value for value in values if isinstance(value, str) and len(value) <= MAX_CAPTION]
    lines = [_BULLET.sub(r"\1", line) for line in answer.splitlines() if len(line) < 2 * MAX_CAPTION]
    return [line for line in lines if len(line.split()) > 2]


def _clean(text: str, names: Sequence[str]) -> str:
    for stand_in in _STAND_INS:
        text = text.replace(stand_in, SLOT)
    return neutral(text, names)
