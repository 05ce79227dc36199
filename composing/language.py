"""Layouts by a language model, on a chat server or on this machine. What it writes is parsed, never run.

Differs: Gen4Gen makes three calls (scenes, ratios, boxes), takes the answers through ``eval`` and gives the
i-th box to the i-th object whatever its label says. Here one call answers all three as a JSON object, and
labels are matched to subjects.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..backbones.pretrained import load_pretrained
from ..core.errors import LikenessError
from ..core.randomness import isolated_rng
from .chat import Message
from .layout import Box, Thing, rounded
from .proposing import Proposal
from .sizes import SMALLEST
from .validation import Rejected

CANVAS = 512  # px that boxes are asked for in, as in the reference
MAX_NEW_TOKENS = 700
_SCENE = re.compile(r"(?:in|on|at|by|beside|near|under|inside|outside|before|among)\b[A-Za-z ,'-]{2,80}")


class LanguageModel(Protocol):
    @property
    def name(self) -> str: ...

    def complete(self, messages: Sequence[Message], *, temperature: float = 0.7, seed: int = 0) -> str: ...


@dataclass(frozen=True)
class LanguageProposer:
    """Asks ``model`` for a whole layout. The temperature is drawn anew for every attempt, as the reference
    does (uniform from 0 to 1)."""

    model: LanguageModel

    @property
    def name(self) -> str:
        return self.model.name

    def propose(self, things: Sequence[Thing], *, seed: int, attempt: int) -> Proposal:
        dice = random.Random(f"language {seed} {attempt}")
        text = self.model.complete(
            question(things), temperature=round(dice.random(), 3), seed=dice.randrange(2**31)
        )
        return parse(text, things)


def question(things: Sequence[Thing]) -> list[dict[str, str]]:
    """What is asked: our own wording of the reference's three templates."""
    shown = [{"label": t.name, "is a": t.noun, "width / height": round(t.aspect, 2)} for t in things]
    example = {
        "scene": "in a garden",
        "objects": [
            {"label": things[0].name, "ratio": 1.0, "box": [40, 180, 200, 300]},
        ],
    }
    rules = (
        f"You arrange objects for a realistic photograph of {CANVAS} x {CANVAS} pixels. Answer with one JSON "
        "object and nothing else. scene: a place where all of them may be seen together, with its "
        'preposition, such as "in a garden". objects: for every label once, ratio: its real size beside the '
        f"largest object, which has 1.0, and at least {SMALLEST}; box: [left, top, width, height] in pixels "
        "from the top left, inside the picture, large, in proportion to ratio, not overlapping, standing on "
        "the ground where such a thing stands."
    )
    user = f"Objects: {json.dumps(shown)}\nAnswer in this form: {json.dumps(example)}"
    return [{"role": "system", "content": rules}, {"role": "user", "content": user}]


def parse(text: str, things: Sequence[Thing]) -> Proposal:
    """A proposal from a model's answer. Raises ``Rejected`` that says what is wrong with it."""
    record = first_object(text)
    rows = record.get("objects")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise Rejected("no objects")
    matched = _matched(rows[:64], things)
    boxes = {name: _box(row, name) for name, row in matched.items()}
    ratios = {name: _ratio(row, name) for name, row in matched.items()}
    top = max(ratios.values())
    return Proposal(
        scene=scene_phrase(record.get("scene")),
        ratios={name: max(SMALLEST, value / top) for name, value in ratios.items()},
        boxes=boxes,
    )


def first_object(text: str) -> dict[str, Any]:
    """The first JSON object in a text, whatever stands around it."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    for _ in range(20):  # texts with many braces are not worth more
        if start < 0:
            break
        try:
            record, _end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
            continue
        if isinstance(record, dict):
            return record
    raise Rejected("no JSON object", repr(text[:60]))


def scene_phrase(value: Any) -> str:
    """A place with its preposition, in plain words: anything else might be an instruction or a path."""
    phrase = " ".join(value.split()).strip(" .").lower() if isinstance(value, str) else ""
    if not _SCENE.fullmatch(phrase):
        raise Rejected("unusable scene", repr(phrase[:60]))
    return phrase


def _matched(rows: Sequence[Mapping[str, Any]], things: Sequence[Thing]) -> dict[str, Mapping[str, Any]]:
    """Rows by subject: by its name, else by its noun in order, else by place when all labels are strange."""
    left = [(_plain(row.get("label", row.get("name", ""))), row) for row in rows]
    found: dict[str, Mapping[str, Any]] = {}
    for key in ("name", "noun"):
        for thing in things:
            wanted = _plain(getattr(thing, key))
            hit = next((pair for pair in left if pair[0] == wanted), None)
            if thing.name not in found and hit is not None:
                found[thing.name] = hit[1]
                left.remove(hit)
    if not found and len(rows) == len(things):
        return {thing.name: row for thing, row in zip(things, rows, strict=True)}
    missing = [thing.name for thing in things if thing.name not in found]
    if missing:
        raise Rejected("missing subject", ", ".join(missing))
    return found


def _plain(label: Any) -> str:
    text = label if isinstance(label, str) else ""
    return " ".join(re.sub(r"[^a-z0-9]+", " ", text[:100].lower()).split())


def _box(row: Mapping[str, Any], name: str) -> Box:
    values = row.get("box")
    if not isinstance(values, list) or len(values) != 4 or not all(_is_number(v) for v in values):
        raise Rejected("unusable box", name)
    if any(abs(v) > 2 * CANVAS for v in values):
        raise Rejected("outside the canvas", name)
    if values[2] <= 0 or values[3] <= 0:
        raise Rejected("empty box", name)
    return rounded([v / CANVAS for v in values])


def _ratio(row: Mapping[str, Any], name: str) -> float:
    value = row.get("ratio", 1.0)
    if not _is_number(value) or not 0 < value <= 100:
        raise Rejected("unusable ratio", name)
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# --- on this machine ----------------------------------------------------------------------------------


class LocalLanguageModel:
    """A causal language model in transformers' layout in a folder of this machine, with a chat template."""

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if not (folder / "config.json").is_file():
            raise LikenessError(
                f"There is no language model in {folder}",
                expected="a folder with config.json, model.safetensors and a tokenizer",
                fix="Download an instruction-tuned model and copy it there; Likeness never downloads",
            )
        self.model, self.tokenizer = load_pretrained(AutoModelForCausalLM, AutoTokenizer, folder, device)
        self.name = folder.name
        if not getattr(self.tokenizer, "chat_template", None):
            raise LikenessError(f"The language model in {folder} has no chat template")

    def complete(self, messages: Sequence[Message], *, temperature: float = 0.7, seed: int = 0) -> str:
        """A sampled answer; the same seed gives the same text on the same machine."""
        import torch

        ids = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self.model.device)
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0.01 else {}
        with torch.no_grad(), isolated_rng(seed, "language model"):
            out = self.model.generate(**ids, max_new_tokens=MAX_NEW_TOKENS, **sampling)
        text: str = self.tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        return text
