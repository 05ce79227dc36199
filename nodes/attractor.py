"""Likeness / training: the attractor, NeTI, and a look at what the attractor took in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.errors import LikenessError
from . import host, learning, sockets, widgets
from .host import io
from .learning import AS_PRESET, PRESET
from .training import CATEGORY

if TYPE_CHECKING:
    from pathlib import Path

    from ..backbones.base import BaseModel
    from ..subjects.subject import Subject
    from ..trainers.attractor import Attractor as Settings
    from ..trainers.events import Done
    from ..trainers.monitor import HeldOutMonitor

SCHEDULES = ["cosine", "sigmoid", "linear", "exponential", "one", "zero"]


class Attractor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessAttractor",
            display_name="Attractor",
            category=CATEGORY,
            description="A second word that soaks up the photos' background, so that the first learns the "
            "subject alone. Plugs into Train Textual Inversion (TI+) and Train NeTI (NeTI+). Needs masks: "
            "Segment Subject makes them.",
            inputs=[
                _weight(
                    "subject_weight",
                    "Of the subject's loss, inside its mask: 'a photo of a v*'.",
                    default=3.0,
                ),
                _weight(
                    "background_weight",
                    "Of the background's loss: 'a photo of a fish in the A*'.",
                    default=3.0,
                ),
                _weight("joint_weight", "Of the whole picture's loss: 'a photo of a v* in the A*'."),
                _weight(
                    "contrastive_weight",
                    "Of the loss that keeps the two words apart, at the end of its schedule. Needs 2 photos.",
                    default=0.1,
                ),
                io.Combo.Input(
                    "schedule",
                    options=SCHEDULES,
                    default="cosine",
                    tooltip="How the contrastive weight rises over the training; its curve is drawn below. "
                    "The paper found cosine and sigmoid best, and a high weight at the start harmful.",
                ),
                io.Float.Input(
                    "temperature",
                    default=0.07,
                    min=0.001,
                    max=100.0,
                    step=0.001,
                    tooltip="Of the contrastive loss: lower looks at the most similar pairs only.",
                ),
                host.supported(
                    io.Boolean.Input,
                    "normalize",
                    default=True,
                    advanced=True,
                    tooltip="Compare directions of the words' states, not lengths. Off follows the equation "
                    "to the letter and needs a temperature of some hundreds.",
                ),
                io.Combo.Input(
                    "mask_norm",
                    options=["mean", "area"],
                    default="mean",
                    tooltip="mean: a small subject counts little, as in the paper. area: it counts in full.",
                ),
                io.Boolean.Input(
                    "per_image",
                    default=False,
                    tooltip="A background word for each photo instead of one for all.",
                ),
                io.Combo.Input(
                    "prompts",
                    options=["all", "random"],
                    default="all",
                    tooltip="all: every photo under all three prompts at each step. random: under one of "
                    "them, three times faster.",
                ),
                io.String.Input(
                    "initial_words", default="background", tooltip="The words that the attractor starts from."
                ),
            ],
            outputs=[
                sockets.Attractor.Output(
                    "attractor",
                    display_name="attractor",
                    tooltip="For Train Textual Inversion or Train NeTI.",
                ),
                io.Image.Output(
                    "curve", display_name="curve", tooltip="The contrastive weight over the training."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, schedule: str | None, mask_norm: str | None, prompts: str | None) -> bool | str:
        return host.listed(cls, schedule=schedule, mask_norm=mask_norm, prompts=prompts)

    @classmethod
    def execute(cls, initial_words: str, **chosen: Any) -> io.NodeOutput:
        from ..trainers.attractor import Attractor as Settings
        from ..trainers.attractor_picture import save_curve
        from .pictures import read_pictures

        settings = Settings(initial_words=initial_words.strip() or "background", **chosen)
        path = save_curve(settings, host.current.output / "likeness" / "previews")
        return io.NodeOutput(settings, read_pictures([path]), ui={"images": host.shown([path])})


def _weight(name: str, tooltip: str, default: float = 1.0) -> Any:
    return io.Float.Input(name, default=default, min=0.0, max=1000.0, step=0.01, tooltip=tooltip)


class TrainNeTI(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessTrainNeTI",
            display_name="Train NeTI",
            category=CATEGORY,
            description="Learns the subject as a word that is another one at every timestep and layer (NeTI, "
            "Alaluf et al. 2023): truer than Textual Inversion at the size of an embedding. The model stays "
            "as it is. A finished run returns at once, a stopped one goes on.",
            inputs=[
                *learning.first_inputs("The photos to learn. The new word is <name of the folder>."),
                io.Combo.Input(
                    "mapper",
                    options=[PRESET, "space-time", "table"],
                    default=PRESET,
                    tooltip="space-time: NeTI's small network. table: a vector for each layer and no notion "
                    "of time, which is XTI (P+). preset: NeTI.",
                ),
                host.supported(
                    io.Float.Input,
                    "nested_dropout",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    advanced=True,
                    tooltip=f"How often only the first few hidden units learn. {AS_PRESET}",
                ),
                io.String.Input(
                    "initial_words",
                    default="",
                    tooltip="The words whose length it keeps, and that a table starts from. Empty: the class "
                    "noun.",
                ),
                *learning.last_inputs(),
                sockets.Attractor.Input(
                    "attractor", optional=True, tooltip="Attractor: makes it NeTI+. Needs masks."
                ),
                *learning.view_inputs(),
            ],
            outputs=learning.outputs(),
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, preset: str | None, mapper: str | None, crop: str | None = None) -> bool | str:
        return host.listed(cls, preset=preset, mapper=mapper, crop=crop)

    @classmethod
    def execute(
        cls,
        base: BaseModel,
        subject: Subject,
        preset: str,
        initial_words: str,
        seed: int,
        monitor: HeldOutMonitor | None = None,
        attractor: Settings | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        from ..trainers.neti import NeTIConfig, train_neti

        turned = {"initial_words": initial_words.strip() or None, "attractor": attractor}
        config = learning.config_of(NeTIConfig, preset, base, settings | turned)
        done = learning.trained(train_neti, base, subject, config, seed=seed, monitor=monitor)
        shown = learning.shown(done, "NeTI word (run)")
        return io.NodeOutput(done.concept, done, *learning.curves(done), ui=shown)


class ViewAttractor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessViewAttractor",
            display_name="View Attractor",
            category=CATEGORY,
            description="'A photo of A*' over some seeds, with 'a photo of v*' from the same noise beside it "
            "(the paper's Figure 9): what the attractor took in, and what was left for the subject.",
            inputs=[
                sockets.Base.Input("base", tooltip="The model that the run was trained on."),
                sockets.Run.Input("run", tooltip="A run of TI+ or NeTI+."),
                io.Int.Input("pictures", default=4, min=1, max=64, tooltip="How many of each word."),
                widgets.seed("Of the noise that both words start from."),
                widgets.steps(25, "Denoising steps (DDIM)."),
                widgets.guidance(5.0, "How strictly they follow."),
            ],
            outputs=[
                io.Image.Output("attractor", display_name="A*", tooltip="The attractor's pictures."),
                io.Image.Output("subject", display_name="v*", tooltip="The subject's, from the same noise."),
                io.Image.Output("sheet", display_name="both", tooltip="A* above, v* below, on one sheet."),
            ],
        )

    @classmethod
    def execute(
        cls, base: BaseModel, run: Done, pictures: int, seed: int, steps: int, guidance: float
    ) -> io.NodeOutput:
        import torch

        from ..concepts.loading import load_concept
        from ..trainers.generate import Request, generate

        words = [load_concept(path) for path in _attractors(run)]
        concepts = [(concept, 1.0) for concept in (*words, run.concept)]
        prompts = [f"a photo of {words[n % len(words)].trigger}" for n in range(pictures)]
        drawn = []
        for lines in (prompts, [f"a photo of {run.concept.trigger}"] * pictures):
            asked = [
                Request(prompts=[line], seed=seed + n, steps=steps, guidance=guidance)
                for n, line in enumerate(lines)
            ]
            parts = [host.follow(generate(base, concepts, request)) for request in asked]
            drawn.append(torch.cat([part.images_BHW3 for part in parts]))
        sheet = torch.cat([torch.cat(list(row), dim=1) for row in drawn])[None]
        return io.NodeOutput(*drawn, sheet)


def _attractors(run: Done) -> list[Path]:
    """The attractor's files beside the subject's. LikenessError when the run had none."""
    path = run.concept.path
    found = sorted(path.parent.glob(f"{path.stem}-attractor*.safetensors"))
    if not found:
        raise LikenessError(
            f"The run {run.run_folder.name} has no attractor",
            expected="a run of Train Textual Inversion or Train NeTI with an Attractor plugged in",
        )
    return found


class ImportNeTI(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = sorted(path.name for path in host.current.model_folder("neti").glob("*.pt"))
        return io.Schema(
            node_id="LikenessImportNeTI",
            display_name="Import NeTI Mapper",
            category=CATEGORY,
            description="A mapper that NeTI's authors released (mapper-steps-N.pt, for Stable Diffusion 1.x) "
            "as a concept. Put the file into models/neti.",
            inputs=[
                io.Combo.Input("file", options=files, tooltip="A .pt file in models/neti."),
                io.Boolean.Input(
                    "allow_pickle_format",
                    default=False,
                    tooltip="Such files are in a format that can carry programs. This reader takes the "
                    "numbers out and runs nothing; switch it on for a file whose source you know.",
                ),
            ],
            outputs=[
                sockets.ConceptSocket.Output(
                    "concept", display_name="concept", tooltip="For Apply Concept and Save Concept."
                ),
                io.String.Output(
                    "trigger", display_name="trigger", tooltip="The word that prompts use for it."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        return host.listed(cls, file=file)

    @classmethod
    def execute(cls, file: str, allow_pickle_format: bool) -> io.NodeOutput:
        from ..concepts.released import read_released
        from ..concepts.saving import save_concept
        from ..core.hashing import hash_file
        from ..core.paths import inside

        path = inside(host.current.model_folder("neti"), file, what="mapper file")
        artifact = read_released(path, allow_pickle_format=allow_pickle_format)
        folder = host.current.output / "likeness" / "imported" / hash_file(path)[:12]
        folder.mkdir(parents=True, exist_ok=True)
        concept = save_concept(artifact, folder, path.stem, family="sd1", base_hash="")
        return io.NodeOutput(concept, concept.trigger)


NODES: list[type[io.ComfyNode]] = [Attractor, TrainNeTI, ViewAttractor, ImportNeTI]
