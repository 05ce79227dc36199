"""Likeness / training: the trainers, and the settings that plug into them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import host, learning, sockets, widgets
from .host import io
from .learning import PRESET, PRESETS

if TYPE_CHECKING:
    from ..backbones.base import BaseModel
    from ..subjects.subject import Subject
    from ..trainers.attractor import Attractor
    from ..trainers.monitor import HeldOutMonitor
    from ..trainers.prior import PriorPreservation

CATEGORY = "Likeness/training"


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
                widgets.steps(50, "Denoising steps of the class pictures."),
                widgets.guidance(7.5, "Guidance of the class pictures."),
                widgets.batch_size(8, "Class pictures drawn at once."),
                widgets.seed("Of the class pictures. Runs with the same one share them."),
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
                widgets.steps(20, "Denoising steps of these pictures."),
                widgets.guidance(5.0, "Guidance of these pictures."),
                widgets.batch_size(16, "Pictures drawn at once."),
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
                *learning.first_inputs("The photos to learn. The new word is <name of the folder>."),
                learning.whole(
                    "num_vectors", 64, "Tokens that the word takes: more hold more detail and edit worse."
                ),
                io.String.Input(
                    "initial_words",
                    default="",
                    tooltip="The words that it starts from. Empty: the class noun.",
                ),
                *learning.last_inputs(),
                sockets.Attractor.Input(
                    "attractor", optional=True, tooltip="Attractor: makes it TI+. Needs masks."
                ),
                *learning.view_inputs(),
            ],
            outputs=learning.outputs(),
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, preset: str | None, crop: str | None = None) -> bool | str:
        return host.listed(cls, preset=preset, crop=crop)

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
        **settings: Any,
    ) -> io.NodeOutput:
        from ..trainers.textual_inversion import TextualInversionConfig, train_textual_inversion

        turned = {"initial_words": initial_words.strip() or None, "attractor": attractor}
        config = learning.config_of(TextualInversionConfig, preset, base, settings | turned)
        done = learning.trained(train_textual_inversion, base, subject, config, seed=seed, monitor=monitor)
        shown = learning.shown(done, "embedding (run)")
        return io.NodeOutput(done.concept, done, *learning.curves(done), ui=shown)


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
                *learning.first_inputs(
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
                learning.whole(
                    "rank", 256, "Of the LoRA, and its alpha: more holds more detail, and overfits sooner."
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
                *learning.last_inputs(),
                sockets.Prior.Input(
                    "prior", optional=True, tooltip="Prior Preservation: keeps the class as it was."
                ),
                *learning.view_inputs(),
            ],
            outputs=learning.outputs(
                io.LoraModel.Output(
                    "lora",
                    display_name="lora",
                    tooltip="The same weights for ComfyUI's Load LoRA (Model) and Save LoRA.",
                )
            ),
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, preset: str | None, train: str | None, crop: str | None = None) -> bool | str:
        return host.listed(cls, preset=preset, train=train, crop=crop)

    @classmethod
    def execute(
        cls,
        base: BaseModel,
        subject: Subject,
        preset: str,
        seed: int,
        monitor: HeldOutMonitor | None = None,
        prior: PriorPreservation | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        from ..concepts.saving import to_lora_model
        from ..trainers.dreambooth import DreamBoothConfig, train_dreambooth

        config = learning.config_of(DreamBoothConfig, preset, base, settings)
        done = learning.trained(
            train_dreambooth, base, subject, config, seed=seed, monitor=monitor, prior=prior
        )
        lora, shown = to_lora_model(done.concept), learning.shown(done, "LoRA (run)")
        return io.NodeOutput(done.concept, done, lora, *learning.curves(done), ui=shown)


NODES: list[type[io.ComfyNode]] = [Prior, Monitor, TrainTextualInversion, TrainDreamBooth]
