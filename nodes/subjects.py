"""Likeness / subject: the photos of one thing, the words for it, and the photos kept aside to judge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import LikenessError
from . import host, sockets, widgets
from .host import io

if TYPE_CHECKING:
    from ..subjects.subject import Subject

CATEGORY = "Likeness/subject"
EXAMPLE = "example:"
EXAMPLES = host.PACK / "workflows" / "subjects"


class LoadSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessLoadSubject",
            display_name="Load Subject",
            category=CATEGORY,
            description="A few photos of one thing, and the words for it.",
            inputs=[
                io.String.Input(
                    "folder",
                    default="example:fish",
                    tooltip="Photos: a folder below ComfyUI's input folder, a full path to a folder or a "
                    ".zip, or example:NAME for photos that come with this pack. Subfolders count. A .txt "
                    "or .json beside a photo is its caption, {} in it standing for the subject. Empty: "
                    "use images.",
                ),
                io.String.Input(
                    "class_noun",
                    default="fish",
                    tooltip="What it is, in one or two plain words: dog, backpack, teapot.",
                ),
                io.String.Input(
                    "identifier",
                    default="sks",
                    tooltip="DreamBooth's rare word for this one thing; prompts say 'sks fish'. "
                    "Textual Inversion has a word of its own.",
                ),
                io.String.Input(
                    "description",
                    default="",
                    tooltip="What is odd about a thing that looks unlike its kind: triangular. May be empty.",
                ),
                io.Image.Input(
                    "images", optional=True, tooltip="Photos from the graph, instead of or beside a folder's."
                ),
                io.Mask.Input(
                    "masks", optional=True, tooltip="One mask per image: white where the subject is."
                ),
            ],
            outputs=[
                sockets.Subject.Output(
                    "subject",
                    display_name="subject",
                    tooltip="The photos and words, for Split Held-out or a trainer.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None, class_noun: str | None, images: Any = None) -> bool | str:
        if class_noun is not None and not class_noun.strip():
            return "class_noun is empty: say what the subject is, such as dog."
        return _problem(lambda: find_photos(folder)) if folder else True

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, **inputs: Any) -> str:
        return fingerprint(find_photos(folder)) if folder else ""

    @classmethod
    def execute(
        cls,
        folder: str,
        class_noun: str,
        identifier: str,
        description: str,
        images: Any = None,
        masks: Any = None,
    ) -> io.NodeOutput:
        from ..subjects import from_images, load_folder, load_zip

        words: dict[str, Any] = {
            "class_noun": class_noun,
            "identifier": identifier,
            "description": description,
        }
        store = host.current.output / "likeness" / "subjects"
        if images is not None:
            with host.training_mode():
                copied = None if masks is None else masks.clone()
                return io.NodeOutput(from_images(images.clone(), store, masks=copied, **words))
        path = find_photos(folder)
        if path.is_file():
            return io.NodeOutput(load_zip(path, store, **words))
        return io.NodeOutput(load_folder(path, **words))


class SplitHeldOut(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessSplitHeldOut",
            display_name="Split Held-out",
            category=CATEGORY,
            description="Keeps some photos from training, to judge by: learned the subject, or the photos?",
            inputs=[
                sockets.Subject.Input("subject", tooltip="From Load Subject."),
                io.Combo.Input(
                    "method",
                    options=["auto", "count", "fraction", "names"],
                    default="auto",
                    tooltip="auto: the photos in a subfolder called held_out or test; where there is "
                    "none, fraction. count and fraction draw by lot. names: those that you name.",
                ),
                io.Int.Input("count", default=1, min=1, max=1000, tooltip="For count: how many photos."),
                io.Float.Input(
                    "fraction",
                    default=0.2,
                    min=0.01,
                    max=0.99,
                    step=0.01,
                    tooltip="For fraction: which share of them.",
                ),
                io.String.Input("names", default="", tooltip="For names: file names, with commas between."),
                widgets.seed("Of the lot that draws them. The same seed holds out the same photos."),
            ],
            outputs=[
                sockets.Subject.Output(
                    "split", display_name="subject", tooltip="The same subject, with its held-out photos."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, method: str | None) -> bool | str:
        return host.listed(cls, method=method)

    @classmethod
    def execute(
        cls, subject: Subject, method: str, count: int, fraction: float, names: str, seed: int
    ) -> io.NodeOutput:
        from ..subjects import split_held_out

        if method == "auto" and subject.held_out:
            return io.NodeOutput(subject)
        choices: dict[str, dict[str, Any]] = {
            "auto": {"fraction": fraction},
            "fraction": {"fraction": fraction},
            "count": {"count": count},
            "names": {"names": [name.strip() for name in names.split(",") if name.strip()]},
        }
        return io.NodeOutput(split_held_out(subject, **choices[method], seed=seed))


NODES: list[type[io.ComfyNode]] = [LoadSubject, SplitHeldOut]


def find_photos(folder: str) -> Path:
    """The folder or .zip that the widget names. LikenessError when there is none."""
    from ..core.paths import inside

    text = folder.strip()
    if text.startswith(EXAMPLE):
        path = inside(EXAMPLES, text.removeprefix(EXAMPLE), what="example")
        tried = [path]
    elif Path(text).expanduser().is_absolute():
        tried = [Path(text).expanduser()]
    else:
        tried = [inside(root, text, what="folder of photos") for root in host.current.roots]
    found = next(
        (path for path in tried if path.is_dir() or (path.suffix.lower() == ".zip" and path.is_file())), None
    )
    if found is None:
        examples = ", ".join(sorted(EXAMPLE + p.name for p in EXAMPLES.glob("*") if p.is_dir()))
        raise LikenessError(
            f"There is no folder of photos {' or '.join(map(str, tried))}",
            expected=f"a folder with pictures, a .zip of them, or one of {examples}",
        )
    return found


def fingerprint(path: Path) -> str:
    """Changes when a file below ``path`` is added, removed, renamed or written."""
    from ..core.hashing import hash_json

    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    stats = [(p.as_posix(), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hash_json(stats)


def _problem(act: Any) -> bool | str:
    """True, or what is wrong in the words that ComfyUI shows on the node."""
    try:
        act()
        return True
    except LikenessError as error:
        return str(error)
