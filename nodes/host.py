"""The host that the nodes run in: ComfyUI, or this package's own runner. Only this file imports ComfyUI.

``io`` and ``ComfyExtension`` are ComfyUI's where it is running, else ``standalone``'s. ``current`` answers
for folders, progress, interruption and memory; ``consume`` drives a trainer's events.
"""

from __future__ import annotations

import inspect
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from ..core.errors import Interrupted, LikenessError
from ..core.paths import inside
from .live import Live, keep_workflow

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..trainers.events import Done, Event, Phase, Step

IN_COMFYUI = "comfy_api" in sys.modules  # its server imports it before any pack

if TYPE_CHECKING or not IN_COMFYUI:
    from . import standalone as io
    from .standalone import ComfyExtension
else:
    try:
        from comfy_api.v0_0_2 import ComfyExtension, io  # stays compatible; "latest" may not
    except ImportError:
        from comfy_api.latest import ComfyExtension, io

__all__ = [
    "IN_COMFYUI",
    "ComfyExtension",
    "consume",
    "current",
    "follow",
    "io",
    "listed",
    "supported",
    "training_mode",
]

PACK = Path(__file__).resolve().parent.parent
RUNS = "likeness/runs"  # below the output folder, unless the page's settings name another
PICTURE_PX = 192  # of a small picture's longest edge
BAR_NODE_S = 0.03  # between two moves of ComfyUI's own bar, for each node whose state it tells with them
Result = TypeVar("Result")


def supported(factory: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """``factory(*args, **options)`` without the options that the installed ComfyUI does not know yet."""
    known = inspect.signature(factory).parameters
    return factory(*args, **{name: value for name, value in options.items() if name in known})


def listed(cls: type[io.ComfyNode], **chosen: object) -> bool | str:
    """A ``validate_inputs`` answer for Combo inputs: True, or which value is none of the options.

    ComfyUI 0.3.64 looks for options in the older form of schemas only, and lets any text through.
    """
    options = {spec.id: spec.options for spec in cls.define_schema().inputs if spec.id in chosen}
    for name, value in chosen.items():
        if value is not None and value not in options[name]:  # None: linked, not known yet
            return f"{name} is {value!r}, which is none of {', '.join(map(str, options[name]))}"
    return True


class Host(Protocol):
    """What the nodes ask of whatever runs them."""

    updates_per_s: float  # more than this makes a page lag behind

    @property
    def output(self) -> Path: ...

    @property
    def runs(self) -> Path:
        """Where training runs are kept: below the output folder, or the page could not show them."""

    @property
    def input(self) -> Path:
        """Where the user's pictures are."""

    @property
    def roots(self) -> tuple[Path, ...]:
        """Where relative paths of photos are looked for."""

    @property
    def models(self) -> Path:
        """ComfyUI's models folder, or one that is laid out like it."""

    def model_folder(self, kind: str) -> Path:
        """Where new models of a kind ("loras", "embeddings") are written."""

    def model_files(self, kind: str) -> list[str]:
        """Names of the models of a kind, relative to their folders, sorted."""

    def model_path(self, kind: str, name: str) -> Path | None:
        """The file or folder of such a name, or None."""

    def check(self) -> None:
        """Raise when the user asked to stop."""

    def show(self, event: Event, preview: Image | None) -> None:
        """Draw an event."""

    def show_pictures(self, pictures: Mapping[str, Image]) -> dict[str, dict[str, str]]:
        """Small pictures for the page, by name: where it finds each. Nothing where there is no page."""

    def free_memory(self) -> None:
        """Make room for a model that this pack loads itself."""

    def give_back(self) -> None:
        """Let go of what such work has loaded, where others need the room."""

    def device(self) -> str:
        """Where models should run: "cpu", "cuda:0", "mps"."""


class Plain:
    """Without ComfyUI: folders that the command line chooses, one listener, one stop flag."""

    updates_per_s = float("inf")

    def __init__(self) -> None:
        self.listener: Callable[[Event], None] = lambda event: None
        self.stop = threading.Event()
        self.place(output=Path("output"))

    def place(self, *, output: Path, models: Path | None = None, input: Path = Path("input")) -> None:
        """Choose the folders; models are kept in the output folder unless ComfyUI's own folder is named."""
        self.output = output.absolute()
        self.runs = self.output / RUNS
        self.models = (models or output / "models").absolute()
        self.input = input.absolute()
        self.roots = (self.input, Path.cwd())

    def model_folder(self, kind: str) -> Path:
        return self.models / kind

    def model_files(self, kind: str) -> list[str]:
        folder = self.models / kind
        return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.safetensors"))

    def model_path(self, kind: str, name: str) -> Path | None:
        path = self.models / kind / name
        return path if path.exists() else None

    def check(self) -> None:
        if self.stop.is_set():
            raise Interrupted("Stopped as asked. The same command goes on from here.")

    def show(self, event: Event, preview: Image | None) -> None:
        self.listener(event)

    def show_pictures(self, pictures: Mapping[str, Image]) -> dict[str, dict[str, str]]:
        return {}

    def free_memory(self) -> None:
        pass

    def give_back(self) -> None:
        pass

    def device(self) -> str:
        return "auto"


class Comfy:
    """Inside ComfyUI."""

    updates_per_s = 4.0

    def __init__(self) -> None:
        self.live = Live()
        self.previewed: Image | None = None
        self.bar_moved_s = -float("inf")

    @property
    def input(self) -> Path:
        import folder_paths

        return Path(folder_paths.get_input_directory())

    @property
    def output(self) -> Path:
        import folder_paths

        return Path(folder_paths.get_output_directory())

    @property
    def runs(self) -> Path:
        chosen = str(settings().get("Likeness.RunFolder") or RUNS)
        return inside(self.output, chosen, what="run folder of the settings")

    @property
    def roots(self) -> tuple[Path, ...]:
        return (self.input,)

    @property
    def models(self) -> Path:
        import folder_paths

        return Path(folder_paths.models_dir)

    def model_folder(self, kind: str) -> Path:
        return Path(self._folders(kind).get_folder_paths(kind)[0])

    def model_files(self, kind: str) -> list[str]:
        return sorted(self._folders(kind).get_filename_list(kind))

    def _folders(self, kind: str) -> Any:
        """ComfyUI's folders; a kind of our own is made known first."""
        import folder_paths

        if kind not in folder_paths.folder_names_and_paths:
            places = [str(Path(folder_paths.models_dir) / kind)]
            folder_paths.folder_names_and_paths[kind] = (places, {".safetensors"})
        return folder_paths

    def model_path(self, kind: str, name: str) -> Path | None:
        found = (Path(folder) / name for folder in self._folders(kind).get_folder_paths(kind))
        return next((path for path in found if path.exists()), None)

    def check(self) -> None:
        import comfy.model_management

        comfy.model_management.throw_exception_if_processing_interrupted()

    def show(self, event: Event, preview: Image | None) -> None:
        from comfy_execution.utils import get_executing_context
        from server import PromptServer

        from ..trainers.events import Phase, Started, Step

        context = get_executing_context()
        if isinstance(event, Phase | Step):
            self._move_bar(event, preview)
        server = getattr(PromptServer, "instance", None)
        if context is None or server is None:
            return
        server.send_progress_text(in_words(event), context.node_id)
        if message := self.live.message(str(context.node_id), event):
            server.send_sync("likeness.run", message, server.client_id)
        if isinstance(event, Started):
            keep_workflow(event.run_folder, server.prompt_queue)

    def _move_bar(self, event: Phase | Step, preview: Image | None) -> None:
        """ComfyUI's own bar; less often in large graphs, where every move is a long message."""
        import comfy.utils
        from comfy_execution.progress import get_progress_state

        from ..trainers.events import Step

        now_s, nodes = time.monotonic(), len(get_progress_state().nodes)
        fresh = preview is not None and preview is not self.previewed  # the page keeps the last one
        if not fresh and now_s - self.bar_moved_s < BAR_NODE_S * nodes:
            return
        self.previewed, self.bar_moved_s = preview, now_s
        done, total = (event.step, event.total) if isinstance(event, Step) else (event.done, event.total)
        picture = ("JPEG", preview, 512) if fresh else None
        comfy.utils.ProgressBar(max(total, 1)).update_absolute(done, max(total, 1), picture)

    def show_pictures(self, pictures: Mapping[str, Image]) -> dict[str, dict[str, str]]:
        import folder_paths

        folder = Path(folder_paths.get_temp_directory()) / "likeness"  # ComfyUI empties it when it starts
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            small = picture.copy()
            small.thumbnail((PICTURE_PX, PICTURE_PX))
            small.save(folder / f"{name}.png")
        return {
            name: {"filename": f"{name}.png", "subfolder": "likeness", "type": "temp"} for name in pictures
        }

    def free_memory(self) -> None:
        import gc

        import comfy.model_management

        comfy.model_management.unload_all_models()
        gc.collect()
        comfy.model_management.soft_empty_cache()

    def give_back(self) -> None:
        import gc

        import comfy.model_management

        from ..backbones import close_backbone

        if self.device() == "cpu":  # main memory is not what runs short, and the next node need not load anew
            return
        close_backbone()
        gc.collect()
        comfy.model_management.soft_empty_cache()

    def device(self) -> str:
        import comfy.model_management

        return str(comfy.model_management.get_torch_device())


def settings() -> dict[str, Any]:
    """What the user has set in ComfyUI's page; nothing where that file is missing or damaged."""
    import json

    import folder_paths

    try:
        path = Path(folder_paths.get_user_directory()) / "default" / "comfy.settings.json"
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


current: Host = Comfy() if IN_COMFYUI else Plain()


def use(host: Host) -> None:
    """Make ``host`` the one that the nodes ask: the runner's first act."""
    global current
    current = host


@contextmanager
def training_mode() -> Iterator[None]:
    """ComfyUI runs prompts under inference mode, whose tensors cannot be trained on: leave it."""
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        yield


def consume(events: Iterator[Event]) -> Done:
    """Drive a trainer to its end: progress, previews, and a look for the stop button at every event.

    Closing the iterator on the way out is what lets a stopped trainer write its checkpoint.
    Raises LikenessError when the trainer ends without a result.
    """
    from ..trainers.events import Done

    last: Event | None = None

    def remember() -> Generator[Event, None, None]:
        nonlocal last
        with closing(_closable(events)) as stream:
            for event in stream:
                last = event
                yield event

    follow(remember())
    if not isinstance(last, Done):
        raise LikenessError(
            "The training ended without a result.", fix="Please report this with the workflow."
        )
    return last


def follow(work: Generator[Event, None, Result]) -> Result:
    """Drive any long work that yields events, as ``consume`` does; its return value.

    What it loaded is given back at its end, whatever that is.
    """
    try:
        return _followed(work)
    finally:
        current.give_back()


def _followed(work: Generator[Event, None, Result]) -> Result:
    throttle = _Throttle(current.updates_per_s)
    preview: Image | None = None
    with training_mode(), closing(work):
        while True:
            try:
                event = next(work)
            except StopIteration as end:
                return cast(Result, end.value)
            preview = _preview(event) or preview
            if throttle.let_through(event):
                current.show(event, preview)
            current.check()


def _closable(events: Iterator[Event]) -> Any:
    return events if hasattr(events, "close") else (event for event in events)


class _Throttle:
    """Lets the first and last of every kind of event through, and else so many a second."""

    def __init__(self, per_second: float) -> None:
        self.gap_s = 1 / per_second
        self.last_s = -float("inf")
        self.kind = ""

    def let_through(self, event: Event) -> bool:
        kind, last = _kind_and_end(event)
        now_s = time.monotonic()
        due = last or kind != self.kind or now_s - self.last_s >= self.gap_s
        if due:
            self.kind, self.last_s = kind, now_s
        return due


def _kind_and_end(event: Event) -> tuple[str, bool]:
    from ..trainers.events import Phase, Step

    if isinstance(event, Phase):
        return event.name, event.done >= event.total
    if isinstance(event, Step):
        return "step", event.step >= event.total
    return type(event).__name__, True


def _preview(event: Event) -> Image | None:
    """The first pictures of a sample, side by side."""
    from ..trainers.events import Sample

    if not isinstance(event, Sample) or not event.paths:
        return None
    from PIL import Image

    pictures = [Image.open(path).convert("RGB") for path in event.paths[:4]]
    sheet = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)))
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width
    return sheet


def in_words(event: Event) -> str:
    """One line that says what happened."""
    from ..trainers.events import (
        AlignmentScore,
        Checkpoint,
        Done,
        HeldOutScore,
        Phase,
        Rollout,
        Sample,
        Started,
        Step,
    )

    words: dict[type, Callable[[Any], str]] = {
        Phase: lambda e: f"{e.name} {e.done}/{e.total}",
        Step: lambda e: f"step {e.step}/{e.total}  loss {e.loss:.4f}",
        Started: lambda e: e.run_folder.name,
        Sample: lambda e: f"sampled at step {e.step}",
        HeldOutScore: lambda e: (
            f"step {e.step}: held-out {e.held_out_dino:.3f}, train {e.train_dino:.3f}, "
            f"CLIP-T {e.clip_t:.3f}: {e.verdict}"
        ),
        Rollout: lambda e: (
            f"epoch {e.epoch + 1}: reward {e.reward:.3f}"
            + (f", with identifier {e.with_identifier:.3f}" if e.with_identifier is not None else "")
            + (f", without {e.without_identifier:.3f}" if e.without_identifier is not None else "")
        ),
        AlignmentScore: lambda e: (
            f"step {e.step}: reward {e.reward:.3f}, identity {e.identity:.3f}, "
            f"witness {e.witness:.3f}: {e.verdict}"
        ),
        Checkpoint: lambda e: f"checkpoint at step {e.step}",
        Done: lambda e: f"{'found finished' if e.reused else 'done'}, best at step {e.best_step}",
    }
    return words[type(event)](event)


def made(kind: str, path: Path) -> dict[str, str]:
    """What a node left on disk, for the command line's summary and ComfyUI's history."""
    return {"kind": kind, "path": str(path)}


def shown(paths: Sequence[Path]) -> list[dict[str, str]]:
    """Pictures below the output folder, as ComfyUI's page asks for them."""
    root = current.output.resolve()
    places = [path.resolve().relative_to(root) for path in paths]
    return [{"filename": p.name, "subfolder": p.parent.as_posix(), "type": "output"} for p in places]
