"""Likeness / training: the trainers, and the settings that plug into them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import host, sockets
from .host import io
from .models import judges_of

if TYPE_CHECKING:
    from ..backbones.base import BaseModel
    from ..subjects.subject import Subject
    from ..trainers.attractor import Attractor
    from ..trainers.events import Done
    from ..trainers.monitor import HeldOutMonitor
    from ..trainers.prior import PriorPreservation

CATEGORY = "Likeness/training"
PRESETS = ["practical", "paper"]
PRESET = "preset"
AS_PRESET = "0: the preset's value."


class Prior(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessPriorPreservation",
            display_name="Prior Preservation",
            category=CATEGORY,
            description="Pictures of the class, drawn by the untouched model and learned beside the "
            "photos, so that not every fish becomes this fish (DreamBooth, section 3.2). Drawn once and "
            "kept.",
            inputs=[
                io.Int.Input(
                    "num_images", default=200, min=1, max=10000, tooltip="How many class pictures to draw."
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Of the class pictures' loss beside the photos' (lambda in the paper).",
                ),
                io.String.Input(
                    "prompt", default="", tooltip="What to draw. Empty: 'a photo of a CLASS NOUN'."
                ),
                io.Int.Input(
                    "steps", default=50, min=1, max=1000, tooltip="Denoising steps of the class pictures."
                ),
                io.Float.Input(
                    "guidance",
                    default=7.5,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Guidance of the class pictures.",
                ),
                io.Int.Input(
                    "batch_size", default=8, min=1, max=256, tooltip="Class pictures drawn at once."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    control_after_generate=True,
                    tooltip="Of the class pictures. Runs with the same one share them.",
                ),
            ],
            outputs=[sockets.Prior.Output("prior", display_name="prior", tooltip="For Train DreamBooth.")],
        )

    @classmethod
    def execute(cls, prompt: str, **settings: Any) -> io.NodeOutput:
        from ..trainers.prior import PriorPreservation

        return io.NodeOutput(PriorPreservation(prompt=prompt.strip() or None, **settings))


class Monitor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessHeldOutMonitor",
            display_name="Held-out Monitor",
            category=CATEGORY,
            description="Scores the held-out photos while training goes on, says when overfitting "
            "starts, and keeps the best checkpoint.",
            inputs=[
                io.Int.Input("every", default=100, min=1, max=100000, tooltip="Steps between two scores."),
                io.Int.Input(
                    "seeds_per_photo",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Pictures drawn for each photo's caption.",
                ),
                io.Int.Input(
                    "steps", default=20, min=1, max=1000, tooltip="Denoising steps of these pictures."
                ),
                io.Float.Input(
                    "guidance",
                    default=5.0,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Guidance of these pictures.",
                ),
                io.Int.Input("batch_size", default=16, min=1, max=256, tooltip="Pictures drawn at once."),
                io.Float.Input(
                    "clip_t_floor",
                    default=0.9,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The best checkpoint must keep this share of the base model's CLIP-T: of its "
                    "obedience to prompts.",
                ),
                host.supported(
                    io.Int.Input,
                    "patience",
                    default=2,
                    min=1,
                    max=100,
                    advanced=True,
                    tooltip="Scores that must lie behind the peak before it is called overfitting.",
                ),
                host.supported(
                    io.Float.Input,
                    "tolerance",
                    default=0.01,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    advanced=True,
                    tooltip="Differences of scores smaller than this count as none.",
                ),
                io.Boolean.Input(
                    "stop_when_overfitting",
                    default=False,
                    tooltip="End the training once it only gets worse.",
                ),
            ],
            outputs=[sockets.Monitor.Output("monitor", display_name="monitor", tooltip="For any trainer.")],
        )

    @classmethod
    def execute(cls, **settings: Any) -> io.NodeOutput:
        from ..trainers.monitor import HeldOutMonitor

        return io.NodeOutput(HeldOutMonitor(**settings))


def _common_inputs(text: str, presets: list[str] = PRESETS, more: str = "") -> list[Any]:
    """What every trainer takes."""
    return [
        sockets.Base.Input("base", tooltip="The model that learns; its own weights stay as they are."),
        sockets.Subject.Input("subject", tooltip=text),
        io.Combo.Input(
            "preset",
            options=presets,
            default="practical",
            tooltip=f"practical: quick, tried on this kind of model. paper: the settings of the paper.{more}",
        ),
        io.Int.Input("steps", default=0, min=0, max=1000000, tooltip=f"Training steps. {AS_PRESET}"),
        io.Float.Input(
            "learning_rate",
            default=0.0,
            min=0.0,
            max=1.0,
            step=1e-6,
            round=1e-9,
            tooltip=f"Step size of the optimizer. {AS_PRESET}",
        ),
        io.Int.Input("batch_size", default=0, min=0, max=256, tooltip=f"Photos in one step. {AS_PRESET}"),
    ]


def _last_inputs() -> list[Any]:
    return [
        io.Int.Input(
            "sample_every",
            default=100,
            min=0,
            max=100000,
            tooltip="Steps between sample pictures. 0 draws none.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**31 - 1,
            control_after_generate=True,
            tooltip="Of everything random. The same settings, photos and seed find the finished run again.",
        ),
        sockets.Monitor.Input("monitor", optional=True, tooltip="Held-out Monitor: needs held-out photos."),
    ]


def _outputs(*more: Any) -> list[Any]:
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


class TrainTextualInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessTrainTextualInversion",
            display_name="Train Textual Inversion",
            category=CATEGORY,
            description="Learns the subject as a new word; the model itself stays as it is (Gal et al. "
            "2022). A few kilobytes that work in any tool. A finished run returns at once, a stopped one "
            "goes on.",
            inputs=[
                *_common_inputs("The photos to learn. The new word is <name of the folder>."),
                io.Int.Input(
                    "num_vectors",
                    default=0,
                    min=0,
                    max=64,
                    tooltip=f"Tokens that the word takes: more hold more detail and edit worse. {AS_PRESET}",
                ),
                io.String.Input(
                    "initial_words",
                    default="",
                    tooltip="The words that it starts from. Empty: the class noun.",
                ),
                *_last_inputs(),
                sockets.Attractor.Input(
                    "attractor", optional=True, tooltip="Attractor: makes it TI+. Needs masks."
                ),
            ],
            outputs=_outputs(),
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, preset: str | None) -> bool | str:
        return host.listed(cls, preset=preset)

    @classmethod
    def execute(
        cls,
        base: BaseModel,
        subject: Subject,
        preset: str,
        initial_words: str,
        seed: int,
        monitor: HeldOutMonitor | None = None,
        attractor: Attractor | None = None,
        **widgets: Any,
    ) -> io.NodeOutput:
        from ..trainers.textual_inversion import TextualInversionConfig, train_textual_inversion

        turned = {"initial_words": initial_words.strip() or None, "attractor": attractor}
        config = _config(TextualInversionConfig, preset, base, widgets | turned)
        host.current.free_memory()
        events = train_textual_inversion(base, subject, config, **_common(base, seed, monitor))
        done = host.consume(events)
        return io.NodeOutput(done.concept, done, *_curves(done), ui=_ui(done, "embedding"))


class TrainDreamBooth(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessTrainDreamBooth",
            display_name="Train DreamBooth",
            category=CATEGORY,
            description="Teaches the model itself the subject under a rare word (Ruiz et al. 2022): as a "
            "LoRA, or all weights of the UNet. A finished run returns at once, a stopped one goes on.",
            inputs=[
                *_common_inputs(
                    "The photos to learn. Prompts call it 'IDENTIFIER CLASS NOUN', such as 'sks fish'.",
                    [*PRESETS, "instructbooth"],
                    " instructbooth: its first stage, with the subject's description in the prompt.",
                ),
                io.Combo.Input(
                    "train",
                    options=[PRESET, "lora", "unet"],
                    default=PRESET,
                    tooltip="lora: small matrices beside the attention layers. unet: every weight of it, "
                    "as in the paper; slower, larger, stronger. preset: what the preset does.",
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=256,
                    tooltip=f"Of the LoRA, and its alpha: more holds more detail, and overfits sooner. "
                    f"{AS_PRESET}",
                ),
                host.supported(
                    io.Boolean.Input,
                    "conv",
                    default=False,
                    advanced=True,
                    tooltip="LoRA also beside the UNet's convolutions: learns shapes faster, and "
                    "overfits sooner.",
                ),
                host.supported(
                    io.Boolean.Input,
                    "text_encoder",
                    default=False,
                    advanced=True,
                    tooltip="LoRA also beside the text encoder's attention; in SDXL, of both.",
                ),
                *_last_inputs(),
                sockets.Prior.Input(
                    "prior", optional=True, tooltip="Prior Preservation: keeps the class as it was."
                ),
            ],
            outputs=_outputs(
                io.LoraModel.Output(
                    "lora",
                    display_name="lora",
                    tooltip="The same weights for ComfyUI's Load LoRA (Model) and Save LoRA.",
                )
            ),
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, preset: str | None, train: str | None) -> bool | str:
        return host.listed(cls, preset=preset, train=train)

    @classmethod
    def execute(
        cls,
        base: BaseModel,
        subject: Subject,
        preset: str,
        seed: int,
        monitor: HeldOutMonitor | None = None,
        prior: PriorPreservation | None = None,
        **widgets: Any,
    ) -> io.NodeOutput:
        from ..concepts.saving import to_lora_model
        from ..trainers.dreambooth import DreamBoothConfig, train_dreambooth

        config = _config(DreamBoothConfig, preset, base, widgets)
        host.current.free_memory()
        events = train_dreambooth(base, subject, config, prior=prior, **_common(base, seed, monitor))
        done = host.consume(events)
        lora = to_lora_model(done.concept)
        return io.NodeOutput(done.concept, done, lora, *_curves(done), ui=_ui(done, "LoRA"))


NODES: list[type[io.ComfyNode]] = [Prior, Monitor, TrainTextualInversion, TrainDreamBooth]


def _config(kind: Any, preset: str, base: BaseModel, widgets: dict[str, Any]) -> Any:
    """The preset with the widgets that were turned; sample_every's 0 is a value of its own."""
    from ..backbones.loading import family_of

    unturned = (None, 0, PRESET)
    turned = {name: v for name, v in widgets.items() if name == "sample_every" or v not in unturned}
    if "rank" in turned:
        turned["alpha"] = float(turned["rank"])  # a scale of 1, as the presets
    if preset != "practical":
        return getattr(kind, preset)(**turned)
    return kind.practical(family_of(base), **turned)


def _common(base: BaseModel, seed: int, monitor: HeldOutMonitor | None) -> dict[str, Any]:
    """What every trainer is told: where runs are kept, and who judges."""
    from ..scoring.encoders import open_encoders

    encoders = None
    if monitor is not None:
        roots = [host.current.models / "likeness"]
        encoders = open_encoders(judges_of(base), device=base.device, roots=roots)
    return {"runs_root": host.current.runs, "seed": seed, "monitor": monitor, "encoders": encoders}


def _curves(done: Done) -> tuple[dict[str, list[float]], Any]:
    """Core's LOSS_MAP, and the last samples as IMAGE."""
    from ..trainers.run import Journal
    from .pictures import read_pictures

    losses = [record["loss"] for record in Journal(done.run_folder / "history.jsonl").read()]
    return {"loss": losses}, read_pictures(_samples(done))


def _samples(done: Done) -> list[Path]:
    """The last step's sample pictures, in the order of their prompts."""
    paths = sorted((done.run_folder / "samples").glob("step-*.png"))
    return [path for path in paths if path.name.rpartition("-")[0] == paths[-1].name.rpartition("-")[0]]


def _ui(done: Done, kind: str) -> dict[str, list[Any]]:
    return {
        "images": host.shown(_samples(done)),
        "likeness": [{**host.made(f"{kind} (run)", done.concept.path), "run": done.run_folder.name}],
    }
