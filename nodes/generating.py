"""Likeness / generate: pictures with what was learned, and what was learned as files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import host, sockets, widgets
from .host import io

if TYPE_CHECKING:
    from ..backbones.base import BaseModel
    from ..concepts.concept import Concept
    from .sockets import AppliedModel

CATEGORY = "Likeness/generate"
KINDS = {"loras": "LoRA", "embeddings": "embedding", "neti": "NeTI word"}
FOLDERS = {"embedding": "embeddings", "neti": "neti"}  # by a concept's kind; the others are in loras


class ApplyConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessApplyConcept",
            display_name="Apply Concept",
            category=CATEGORY,
            description="A model that knows what was learned. Chain several to use them together.",
            inputs=[
                sockets.BaseOrModel.Input(
                    "model", tooltip="A base model, or the output of another Apply Concept."
                ),
                sockets.ConceptSocket.Input(
                    "concept", tooltip="What was learned: from a trainer or Load Concept."
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-2.0,
                    max=2.0,
                    step=0.05,
                    tooltip="1 is as trained, 0 is not at all. A learned word is there or not.",
                ),
            ],
            outputs=[sockets.Model.Output("applied", display_name="model", tooltip="For Generate.")],
        )

    @classmethod
    def execute(cls, model: BaseModel | AppliedModel, concept: Concept, strength: float) -> io.NodeOutput:
        from ..concepts.applying import check_base

        before = sockets.applied(model)
        check_base(concept, before.base)
        return io.NodeOutput(sockets.AppliedModel(before.base, (*before.concepts, (concept, strength))))


class Generate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessGenerate",
            display_name="Generate",
            category=CATEGORY,
            description="Draws pictures of the prompts, each from its own noise, whatever the others are.",
            inputs=[
                sockets.BaseOrModel.Input("model", tooltip="A base model, or one with concepts applied."),
                io.String.Input(
                    "prompts",
                    default="a photo of {} in the snow\na photo of {} on the beach",
                    multiline=True,
                    tooltip="One per line. {} stands for the subject: the word that the last concept "
                    "learned.",
                ),
                io.String.Input(
                    "subject_words",
                    default="",
                    tooltip="What {} stands for instead: 'a fish' for a base model. Empty: the concept's "
                    "word.",
                ),
                io.Int.Input(
                    "images_per_prompt", default=2, min=1, max=64, tooltip="How many pictures of each prompt."
                ),
                widgets.seed("Of the noise. The n-th picture of every prompt starts from the same noise."),
                widgets.steps(25, "Denoising steps (DDIM)."),
                widgets.guidance(5.0, "How strictly pictures follow prompts. 1 turns guidance off."),
            ],
            outputs=[
                io.Image.Output(
                    "pictures", display_name="IMAGE", tooltip="All pictures, prompt after prompt."
                ),
                io.String.Output(
                    "drawn", display_name="prompts", tooltip="Each picture's prompt, one per line."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, prompts: str | None) -> bool | str:
        return prompts is None or bool(prompts.strip()) or "prompts is empty: write at least one line."

    @classmethod
    def execute(
        cls,
        model: BaseModel | AppliedModel,
        prompts: str,
        subject_words: str,
        images_per_prompt: int,
        seed: int,
        steps: int,
        guidance: float,
    ) -> io.NodeOutput:
        from ..trainers.generate import Request, generate

        known = sockets.applied(model)
        request = Request(
            prompts=prompts.splitlines(),
            images_per_prompt=images_per_prompt,
            subject_words=subject_words,
            seed=seed,
            steps=steps,
            guidance=guidance,
        )
        host.current.free_memory()
        drawn = host.follow(generate(known.base, known.concepts, request))
        return io.NodeOutput(drawn.images_BHW3, "\n".join(drawn.prompts))


class SaveConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessSaveConcept",
            display_name="Save Concept",
            category=CATEGORY,
            description="Puts what was learned where ComfyUI's own nodes find it: a LoRA in "
            "models/loras/likeness, an embedding in models/embeddings; other tools load the same files. A "
            "NeTI word goes to models/neti, for Load Concept.",
            inputs=[
                sockets.ConceptSocket.Input("concept", tooltip="From a trainer."),
                io.String.Input(
                    "name",
                    default="my-subject",
                    tooltip="The file's name, without ending. A different file of that name is kept, and "
                    "a number added. Prompts in ComfyUI use an embedding as embedding:NAME.",
                ),
            ],
            outputs=[
                sockets.ConceptSocket.Output("saved", display_name="concept", tooltip="The saved concept."),
                io.String.Output("path", display_name="path", tooltip="Where it was saved."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, concept: Concept, name: str) -> io.NodeOutput:
        from ..concepts.copying import copy_concept

        kind = FOLDERS.get(concept.kind, "loras")
        folder = host.current.model_folder(kind)
        saved = copy_concept(concept, folder / "likeness" if kind == "loras" else folder, name)
        return io.NodeOutput(saved, str(saved.path), ui={"likeness": [host.made(KINDS[kind], saved.path)]})


class LoadConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        names = [f"{kind}/{name}" for kind in KINDS for name in host.current.model_files(kind)]
        return io.Schema(
            node_id="LikenessLoadConcept",
            display_name="Load Concept",
            category=CATEGORY,
            description="A LoRA or embedding from models/loras or models/embeddings, of this pack or "
            "another tool, or a NeTI word from models/neti.",
            inputs=[io.Combo.Input("file", options=names, tooltip="A file that was learned before.")],
            outputs=[
                sockets.ConceptSocket.Output("concept", display_name="concept", tooltip="For Apply Concept."),
                io.String.Output(
                    "trigger",
                    display_name="trigger",
                    tooltip="The word that prompts use for it; empty if unknown.",
                ),
                io.String.Output(
                    "unmatched",
                    display_name="unmatched",
                    tooltip="What in the file nothing was made of, and why, one key per line. Empty: all "
                    "of it is used.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        from .subjects import fingerprint

        path = host.current.model_path(*file.split("/", 1))
        return fingerprint(path) if path else ""

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        return host.listed(cls, file=file)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        from ..concepts.loading import load_concept
        from ..core.errors import LikenessError

        path = host.current.model_path(*file.split("/", 1))
        if path is None:
            raise LikenessError(f"{file} is no longer there", fix="Refresh the page and choose another")
        concept = load_concept(path)
        left = "\n".join(f"{key}: {reason}" for key, reason in sorted(concept.unmatched.items()))
        return io.NodeOutput(concept, concept.trigger, left)


NODES: list[type[io.ComfyNode]] = [ApplyConcept, Generate, SaveConcept, LoadConcept]
