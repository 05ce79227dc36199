"""What the nodes that train share: widgets, the settings that they become, a run, and its outputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import host, sockets, widgets
from .host import io
from .judges import open_judges

if TYPE_CHECKING:
    from ..backbones.base import BaseModel
    from ..subjects.subject import Subject
    from ..trainers.events import Done
    from ..trainers.monitor import HeldOutMonitor

PRESETS = ["practical", "paper"]
PRESET = "preset"
CROPS = ["center", "random", "resize", "bucket"]
AS_PRESET = "0: the preset's value."


def whole(name: str, most: int, tooltip: str) -> Any:
    """A whole number, of which 0 leaves it to the preset."""
    return io.Int.Input(name, default=0, min=0, max=most, tooltip=f"{tooltip} {AS_PRESET}")


def number(name: str, most: float, step: float, tooltip: str, **more: Any) -> Any:
    """A number, of which 0 leaves it to the preset."""
    tooltip = f"{tooltip} {AS_PRESET}"
    return io.Float.Input(name, default=0.0, min=0.0, max=most, step=step, tooltip=tooltip, **more)


def learning_rate() -> Any:
    return number("learning_rate", 1.0, 1e-6, "Step size of the optimizer.", round=1e-9)


def first_inputs(text: str, presets: list[str] = PRESETS, more: str = "") -> list[Any]:
    """What every trainer of a subject takes."""
    return [
        sockets.Base.Input("base", tooltip="The model that learns; its own weights stay as they are."),
        sockets.Subject.Input("subject", tooltip=text),
        io.Combo.Input(
            "preset",
            options=presets,
            default="practical",
            tooltip=f"practical: quick, tried on this kind of model. paper: the settings of the paper.{more}",
        ),
        whole("steps", 1000000, "Training steps."),
        learning_rate(),
        whole("batch_size", 256, "Photos in one step."),
    ]


def last_inputs() -> list[Any]:
    return [
        io.Int.Input(
            "sample_every",
            default=100,
            min=0,
            max=100000,
            tooltip="Steps between sample pictures. 0 draws none.",
        ),
        widgets.seed("Of everything random. The same settings, photos and seed find the finished run again."),
        sockets.Monitor.Input("monitor", optional=True, tooltip="Held-out Monitor: needs held-out photos."),
    ]


def view_inputs() -> list[Any]:
    """How photos become training views; the last widgets of a trainer, which a saved graph may lack."""
    return [
        host.supported(
            io.Combo.Input,
            "crop",
            options=[PRESET, *CROPS],
            default=PRESET,
            optional=True,
            advanced=True,
            tooltip="What of a photo is seen. center, random: the largest square. resize: all of it, "
            "squeezed to a square. bucket: nearly all of it, in the size that is nearest to its shape.",
        ),
        host.supported(
            io.Boolean.Input,
            "flip",
            default=False,
            optional=True,
            advanced=True,
            tooltip="Show every photo mirrored too. Not for subjects with text or a left and a right.",
        ),
    ]


def outputs(*more: Any) -> list[Any]:
    return [
        sockets.ConceptSocket.Output(
            "concept",
            display_name="concept",
            tooltip="What was learned: the best checkpoint of the monitor, else the last.",
        ),
        sockets.Run.Output("run", display_name="run", tooltip="The whole run, for Report."),
        *more,
        io.LossMap.Output(
            "loss_map",
            display_name="loss map",
            tooltip="The loss of every step, for ComfyUI's Plot Loss Graph.",
        ),
        io.Image.Output(
            "samples",
            display_name="samples",
            tooltip="The last sample pictures; one black one if none were drawn.",
        ),
    ]


def config_of(kind: Any, preset: str, base: BaseModel, widgets: dict[str, Any]) -> Any:
    """The preset with the widgets that were turned; sample_every's 0 is a value of its own."""
    from ..backbones.loading import family_of

    unturned = (None, 0, PRESET)
    turned = {name: v for name, v in widgets.items() if name == "sample_every" or v not in unturned}
    if "rank" in turned:
        turned["alpha"] = float(turned["rank"])  # a scale of 1, as the presets
    if preset != "practical":
        return getattr(kind, preset)(**turned)
    return kind.practical(family_of(base), **turned)


def trained(
    train: Any,
    base: BaseModel,
    subject: Subject,
    config: Any,
    *,
    seed: int,
    monitor: HeldOutMonitor | None,
    **more: Any,
) -> Done:
    """One of the trainers at work, to its end: told where runs are kept, and who judges."""
    host.current.free_memory()
    judges = open_judges(base) if monitor is not None else None
    return host.consume(
        train(
            base, subject, config,
            runs_root=host.current.runs, seed=seed, monitor=monitor, encoders=judges, **more,
        )
    )  # fmt: skip


def curves(done: Done) -> tuple[dict[str, list[float]], Any]:
    """Core's LOSS_MAP, and the last samples as IMAGE."""
    from ..trainers.run import Journal
    from .pictures import read_pictures

    losses = [record["loss"] for record in Journal(done.run_folder / "history.jsonl").read()]
    return {"loss": losses}, read_pictures(samples(done))


def samples(done: Done) -> list[Path]:
    """The last step's sample pictures, in the order of their prompts."""
    paths = sorted((done.run_folder / "samples").glob("step-*.png"))
    return [path for path in paths if path.name.rpartition("-")[0] == paths[-1].name.rpartition("-")[0]]


def shown(done: Done, kind: str) -> dict[str, list[Any]]:
    """What the page shows of a run: its samples, and a link to what was learned."""
    return {
        "images": host.shown(samples(done)),
        "likeness": [{**host.made(kind, done.concept.path), "run": done.run_folder.name}],
    }
