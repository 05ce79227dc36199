"""Published benchmarks of personalization, read as they are: DreamBench, InstructBooth's set, DreamBench++.

DreamBench (Ruiz et al. 2022, arXiv:2208.12242): 30 subjects, each a folder of 4 to 6 photos, and one file
with their classes and 25 prompts for each kind: Python source, which is read as text and never run.
InstructBooth's set (arXiv:2312.03011, appendix A): 8 subjects in 4 pairs, five phrases for each pair.
DreamBench++ (Peng et al. 2024, arXiv:2406.16855): 150 pictures, each a subject of its own, with 9 prompts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.errors import LikenessError
from ..core.hashing import hash_json
from ..core.paths import slug
from .captions import read_text
from .dataset import SLOT
from .folder import load_folder, natural_key, read_photo
from .prompt_pool import ACTIVITIES
from .split import split_held_out
from .subject import Subject, build_subject

PROMPT_FILE = "prompts_and_classes.txt"
LIVE = ("cat", "dog")  # classes of the nine live subjects
DREAMBENCH_IMAGES_PER_PROMPT = 4  # 30 subjects x 25 prompts x 4 = 3,000 pictures
INSTRUCTBOOTH_IMAGES_PER_PROMPT = 10  # 8 subjects x 5 phrases x 10 = 400 pictures
PLUS_IMAGES_PER_PROMPT = 1  # the default of its code (num_images_per_prompt)
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
    """One subject of a benchmark, and its prompts with {} for the subject's words.

    ``practice`` names the list of ``prompt_pool.ACTIVITIES`` that alignment practises for them.
    """

    subject: Subject
    prompts: tuple[str, ...]
    practice: str


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Subjects with prompts, and how many pictures of each prompt the paper draws."""

    name: str
    items: tuple[Item, ...]
    images_per_prompt: int

    @property
    def content_hash(self) -> str:
        digest: str = hash_json([[item.subject.content_hash, item.prompts] for item in self.items])
        return digest

    def reduced(self, *, most_subjects: int = 0, held_out: int = 0) -> Benchmark:
        """The first ``most_subjects`` (0: all), each with so many photos held out (0: as loaded)."""
        items = self.items[: most_subjects or None]
        if held_out:
            items = tuple(replace(i, subject=split_held_out(i.subject, count=held_out)) for i in items)
        return replace(self, items=items)

    def listing(self) -> str:
        """Every prompt on a line of its own, with its subject in front."""
        lines = [f"{item.subject.name}: {prompt}" for item in self.items for prompt in item.prompts]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class PromptFile:
    classes: Mapping[str, str]  # by subject
    prompts: Mapping[str, tuple[str, ...]]  # "object" and "live", {} for "[identifier] [class]"

    def of(self, subject: str) -> tuple[str, ...]:
        return self.prompts[self.kind(subject)]

    def kind(self, subject: str) -> str:
        return "live" if self.classes[subject] in LIVE else "object"


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
    practice = {"object": "dreambench objects", "live": "dreambench live"}  # InstructBooth, appendix G
    items = [
        Item(
            subject=load_folder(Path(folder) / name, class_noun=noun, identifier=identifier, name=name),
            prompts=listed.of(name),
            practice=practice[listed.kind(name)],
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
            practice=activities,
        )
        for name, noun, activities in INSTRUCTBOOTH
        if (Path(folder) / name).is_dir()
    ]
    if not items:
        names = ", ".join(name for name, _, _ in INSTRUCTBOOTH)
        raise LikenessError(f"{folder} holds none of the set's subjects", expected=f"folders named {names}")
    return items


def load_dreambench_plus(folder: Path, *, identifier: str = "sks") -> list[Item]:
    """DreamBench++'s data: ``images/<kind>/.../00.jpg``, and in ``captions``, under the same name with .txt,
    the subject's words on the first line and a prompt on every other."""
    pictures = sorted((Path(folder) / "images").rglob("*.jpg"), key=natural_key)
    if not pictures:
        raise LikenessError(
            f"{folder} is not DreamBench++", expected="pictures in images/ and their prompts in captions/"
        )
    return [_plus_item(Path(folder), picture, identifier) for picture in pictures]


def _plus_item(folder: Path, picture: Path, identifier: str) -> Item:
    place = picture.relative_to(folder / "images").with_suffix("")
    told = (folder / "captions" / place).with_suffix(".txt")
    if not told.is_file():
        raise LikenessError(f"{picture} has no prompts", expected=f"the file {told}")
    noun, *prompts = [line.strip() for line in read_text(told).splitlines() if line.strip()] or [""]
    if not prompts:
        raise LikenessError(f"{told} has no prompts", expected="the subject on its first line, prompts below")
    subject = build_subject(
        name=slug("-".join(place.parts)),
        class_noun=noun,
        identifier=identifier,
        description="",
        photos=[read_photo(picture, None, None)],
    )
    live = any("live" in part or part in ("animal", "human") for part in place.parts)
    return Item(
        subject=subject,
        prompts=tuple(slotted(prompt, noun) for prompt in prompts),
        practice="dreambench live" if live else "dreambench objects",  # ours: its paper aligns nothing
    )


def slotted(prompt: str, noun: str) -> str:
    """The prompt with {} where it first names the subject; in front where it does not."""
    named = re.compile(rf"\b{re.escape(noun)}\b", re.IGNORECASE)
    text, found = named.subn(SLOT, prompt, count=1)
    return text if found else f"{SLOT}, {prompt}"


@dataclass(frozen=True, kw_only=True)
class Layout:
    load: Callable[..., list[Item]]
    images_per_prompt: int


LAYOUTS: Mapping[str, Layout] = {
    "dreambench": Layout(load=load_dreambench, images_per_prompt=DREAMBENCH_IMAGES_PER_PROMPT),
    "instructbooth": Layout(load=load_instructbooth, images_per_prompt=INSTRUCTBOOTH_IMAGES_PER_PROMPT),
    "dreambench++": Layout(load=load_dreambench_plus, images_per_prompt=PLUS_IMAGES_PER_PROMPT),
}


def load_benchmark(folder: Path, layout: str, *, identifier: str = "sks") -> Benchmark:
    """A benchmark from its folder, by one of ``LAYOUTS``. LikenessError naming what has another shape."""
    if layout not in LAYOUTS:
        raise LikenessError(f"There is no layout {layout!r}", expected=", ".join(LAYOUTS))
    known = LAYOUTS[layout]
    items = known.load(Path(folder), identifier=identifier)
    return Benchmark(
        name=slug(Path(folder).resolve().name),
        items=tuple(items),
        images_per_prompt=known.images_per_prompt,
    )
