"""Published benchmarks of personalization, read as they are: DreamBench, and InstructBooth's set.

DreamBench (Ruiz et al. 2022, arXiv:2208.12242): 30 subjects, each a folder of 4 to 6 photos, and one file
with their classes and 25 prompts for each kind: Python source, which is read as text and never run.
InstructBooth's set (arXiv:2312.03011, appendix A): 8 subjects in 4 pairs, five phrases for each pair.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import LikenessError
from .folder import load_folder
from .prompt_pool import ACTIVITIES
from .subject import Subject

PROMPT_FILE = "prompts_and_classes.txt"
LIVE = ("cat", "dog")  # classes of the nine live subjects
DREAMBENCH_IMAGES_PER_PROMPT = 4  # 30 subjects x 25 prompts x 4 = 3,000 pictures
INSTRUCTBOOTH_IMAGES_PER_PROMPT = 10  # 8 subjects x 5 phrases x 10 = 400 pictures
_PROMPT = re.compile(r"^\s*'((?:[^'\\]|\\.)*)'\.format\(unique_token, class_token\),?\s*$")
_CLASS = re.compile(r"^(\w+),(.+)$")

# (subject, class noun, its list among ``prompt_pool.ACTIVITIES``), pair by pair. Photos of dog and monster
# toy are DreamBench's, the others Custom Diffusion's.
INSTRUCTBOOTH: tuple[tuple[str, str, str], ...] = (
    ("cat", "cat", "pets"),
    ("dog", "dog", "pets"),
    ("teddy_bear", "teddy bear", "toys"),
    ("monster_toy", "monster toy", "toys"),
    ("wooden_pot", "wooden pot", "vessels"),
    ("cup", "cup", "vessels"),
    ("motorbike", "motorbike", "vehicles"),
    ("bike", "bike", "vehicles"),
)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One subject of a benchmark, and its prompts with {} for the subject's words."""

    subject: Subject
    prompts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PromptFile:
    classes: Mapping[str, str]  # by subject
    prompts: Mapping[str, tuple[str, ...]]  # "object" and "live", {} for "[identifier] [class]"

    def of(self, subject: str) -> tuple[str, ...]:
        return self.prompts["live" if self.classes[subject] in LIVE else "object"]


def read_prompt_file(path: Path) -> PromptFile:
    """DreamBench's prompts_and_classes.txt. LikenessError naming what is not there."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LikenessError(f"{path} cannot be read: {error}", expected="DreamBench's prompt file") from error
    classes: dict[str, str] = {}
    prompts: dict[str, list[str]] = {"object": [], "live": []}
    kind = "object"
    for line in lines:
        heading = line.strip().lower()
        if heading.endswith("prompts"):
            kind = "live" if heading.startswith("live") else "object"
        elif match := _PROMPT.match(line):
            prompts[kind].append(match[1].replace("\\'", "'").replace("{0} {1}", "{}"))
        elif (match := _CLASS.match(line)) and match[1] != "subject_name":
            classes[match[1]] = match[2].strip()
    empty = [name for name, some in (("classes", classes), *prompts.items()) if not some]
    if empty:
        raise LikenessError(
            f"{path} has no {empty[0]}", expected=f"the {PROMPT_FILE} of github.com/google/dreambooth"
        )
    return PromptFile(classes=classes, prompts={name: tuple(some) for name, some in prompts.items()})


def load_dreambench(folder: Path, *, identifier: str = "sks") -> list[Item]:
    """Every subject that has a folder there, in the file's order. None at all is a LikenessError."""
    listed = read_prompt_file(Path(folder) / PROMPT_FILE)
    items = [
        Item(
            subject=load_folder(Path(folder) / name, class_noun=noun, identifier=identifier, name=name),
            prompts=listed.of(name),
        )
        for name, noun in listed.classes.items()
        if (Path(folder) / name).is_dir()
    ]
    if not items:
        raise LikenessError(
            f"{folder} holds none of DreamBench's subjects", expected="folders such as backpack"
        )
    return items


def load_instructbooth(folder: Path, *, identifier: str = "sks") -> list[Item]:
    """The subjects of InstructBooth's set that have a folder of photos there: ``cat``, ``teddy_bear`` ..."""
    items = [
        Item(
            subject=load_folder(Path(folder) / name, class_noun=noun, identifier=identifier, name=name),
            prompts=tuple(f"a {{}} {activity}" for activity in ACTIVITIES[activities].seen),
        )
        for name, noun, activities in INSTRUCTBOOTH
        if (Path(folder) / name).is_dir()
    ]
    if not items:
        names = ", ".join(name for name, _, _ in INSTRUCTBOOTH)
        raise LikenessError(f"{folder} holds none of the set's subjects", expected=f"folders named {names}")
    return items
