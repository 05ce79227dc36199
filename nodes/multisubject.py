"""Likeness / training and score, for several subjects at once: Custom Diffusion, merging, CP-CLIP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import host, judges, learning, sockets
from .host import io
from .learning import PRESET
from .pictures import prompts_of
from .training import CATEGORY as TRAINING

if TYPE_CHECKING:
    from collections.abc import Generator

    from ..backbones.base import BaseModel
    from ..composing.dataset import SceneDataset
    from ..concepts.concept import Concept
    from ..scoring.composition import CompositionCard
    from ..subjects.subject import Subject
    from ..trainers.events import Phase
    from ..trainers.monitor import HeldOutMonitor
    from ..trainers.prior import PriorPreservation
    from .sockets import AppliedModel

MOST_SUBJECTS = 4  # that are linked one by one; a scene dataset may have more


class TrainCustomDiffusion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        common = [spec for spec in learning.first_inputs("") if spec.id != "subject"]
        return io.Schema(
            node_id="LikenessTrainCustomDiffusion",
            display_name="Train Custom Diffusion",
            category=TRAINING,
            description="Teaches the model several subjects at once (Kumari et al. 2022): the keys and "
            "values of its cross-attention and a new word for each. Link a scene dataset, or the subjects "
            "one by one. A finished run returns at once, a stopped one goes on.",
            inputs=[
                *common,
                io.Combo.Input(
                    "train",
                    options=[PRESET, "kv", "cross_attention"],
                    default=PRESET,
                    tooltip="kv: keys and values, as the paper. cross_attention: queries and outputs, too.",
                ),
                io.Combo.Input(
                    "augmentation",
                    options=[PRESET, "on", "off"],
                    default=PRESET,
                    tooltip="The authors' own: smaller and larger views, with words that say so.",
                ),
                host.supported(
                    io.Boolean.Input,
                    "match_reference",
                    default=False,
                    advanced=True,
                    tooltip="The known bugs of the authors' code, too: to compare with its results.",
                ),
                *[spec for spec in learning.last_inputs() if spec.id != "monitor"],
                sockets.Scenes.Input("dataset", optional=True, tooltip="Scenes of all subjects together."),
                *(
                    sockets.Subject.Input(name, optional=True, tooltip="Separate photos of one subject.")
                    for name in _subject_names()
                ),
                sockets.Prior.Input(
                    "prior", optional=True, tooltip="Prior Preservation: keeps the classes as they were."
                ),
                sockets.Monitor.Input(
                    "monitor", optional=True, tooltip="Held-out Monitor: for a single subject only."
                ),
                learning.number(
                    "token_rate",
                    1000.0,
                    0.1,
                    "How many times the learning rate the words have.",
                    optional=True,
                ),
            ],
            outputs=learning.outputs(
                io.LoraModel.Output(
                    "lora", display_name="lora", tooltip="The weights, for ComfyUI's Load LoRA (Model)."
                ),
                io.String.Output(
                    "words", display_name="words", tooltip="What prompts call the subjects, one per line."
                ),
            ),
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, preset: str | None, train: str | None, augmentation: str | None) -> bool | str:
        return host.listed(cls, preset=preset, train=train, augmentation=augmentation)

    @classmethod
    def execute(
        cls,
        base: BaseModel,
        preset: str,
        augmentation: str,
        seed: int,
        dataset: SceneDataset | None = None,
        prior: PriorPreservation | None = None,
        monitor: HeldOutMonitor | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        from ..concepts.saving import to_lora_model
        from ..trainers.custom_diffusion import CustomDiffusionConfig, train_custom_diffusion

        plugged = {name: settings.pop(name, None) for name in _subject_names()}
        subjects = [subject for subject in plugged.values() if subject is not None]
        material, words = _material(dataset, subjects)
        config = learning.config_of(CustomDiffusionConfig, preset, base, settings | {"words": words or None})
        if augmentation != PRESET:
            config = _replaced(config, augment=augmentation == "on")
        done = learning.trained(
            train_custom_diffusion, base, material, config, seed=seed, monitor=monitor, prior=prior
        )
        lora, shown = to_lora_model(done.concept), learning.shown(done, "LoRA (run)")
        lines = "\n".join(f"{token} {noun}" for token, noun in done.concept.metadata["words"])
        return io.NodeOutput(done.concept, done, lora, lines, *learning.curves(done), ui=shown)


class MergeConcepts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessMergeConcepts",
            display_name="Merge Concepts",
            category=TRAINING,
            description="Subjects that were learned apart by Train Custom Diffusion as one concept, in "
            "closed form and without training (Kumari et al. 2022, section 3.3).",
            inputs=[
                sockets.Base.Input("base", tooltip="The model that they were trained on."),
                sockets.ConceptSocket.Input("concept", tooltip="From Train Custom Diffusion."),
                sockets.ConceptSocket.Input("concept2", tooltip="Another one."),
                sockets.ConceptSocket.Input("concept3", optional=True, tooltip="Another one."),
                sockets.ConceptSocket.Input("concept4", optional=True, tooltip="Another one."),
            ],
            outputs=[
                sockets.ConceptSocket.Output("merged", display_name="concept", tooltip="All words in one."),
            ],
        )

    @classmethod
    def execute(
        cls,
        base: BaseModel,
        concept: Concept,
        concept2: Concept,
        concept3: Concept | None = None,
        concept4: Concept | None = None,
    ) -> io.NodeOutput:
        from ..backbones import open_backbone
        from ..concepts.saving import save_concept
        from ..core.hashing import hash_json
        from ..trainers.merging import merge_concepts

        chosen = [one for one in (concept, concept2, concept3, concept4) if one is not None]
        with host.training_mode():
            backbone = open_backbone(base)
            artifact = merge_concepts(backbone, chosen)
            name = "merged-" + hash_json([one.sha256 for one in chosen])[:12]
            folder = host.current.output / "likeness" / "merged"
            merged = save_concept(
                artifact, folder, name, family=backbone.family, base_hash=backbone.content_hash
            )
        return io.NodeOutput(merged)


class ScoreComposition(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessScoreComposition",
            display_name="Score Composition",
            category="Likeness/score",
            description="Are all subjects there and right (CP-CLIP), and does the picture follow its text "
            "(TI-CLIP)? Gen4Gen's measures as we read the paper, which gives no formula.",
            inputs=[
                sockets.BaseOrModel.Input(
                    "model", tooltip="What drew the pictures: its words are left out of TI-CLIP."
                ),
                io.Image.Input("images", tooltip="The pictures, as many for each prompt."),
                io.String.Input(
                    "prompts", default="", multiline=True, tooltip="Their prompts: link them from Generate."
                ),
                io.Combo.Input(
                    "judges",
                    options=judges.JUDGES,
                    default="auto",
                    tooltip="auto: Toybox's own for its pictures, else OWL-ViT and CLIP, which must be on "
                    "this machine. Scores of different judges are not comparable.",
                ),
                sockets.Subject.Input("subject", tooltip="One that every picture should show."),
                *(
                    sockets.Subject.Input(name, optional=True, tooltip="Another one.")
                    for name in _subject_names()[1:]
                ),
            ],
            outputs=[
                io.String.Output("summary", display_name="summary", tooltip="The means in one line."),
                io.String.Output("scores", display_name="scores", tooltip="All of it as JSON."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, judges: str | None) -> bool | str:
        return host.listed(cls, judges=judges)

    @classmethod
    def execute(
        cls,
        model: BaseModel | AppliedModel,
        images: Any,
        prompts: str,
        judges: str,
        subject: Subject,
        **plugged: Any,
    ) -> io.NodeOutput:
        import json

        known = sockets.applied(model)
        subjects = [subject, *(plugged[key] for key in sorted(plugged) if plugged[key] is not None)]
        card = host.follow(_score(known, images, prompts, subjects, judges))
        text = json.dumps(card.record(), indent=1, sort_keys=True)
        return io.NodeOutput(card.summary(), text, ui={"text": [card.summary()]})


NODES: list[type[io.ComfyNode]] = [TrainCustomDiffusion, MergeConcepts, ScoreComposition]


def _subject_names() -> list[str]:
    return ["subject", *(f"subject{n}" for n in range(2, MOST_SUBJECTS + 1))]


def _material(dataset: SceneDataset | None, subjects: list[Subject]) -> tuple[Subject, Any]:
    """What to learn from, and the words of joint training; no words for a single subject."""
    from ..composing.dataset import scene_photos
    from ..core.errors import LikenessError
    from ..trainers.custom_diffusion import Word, joint_material, joint_subject

    if dataset is not None and subjects:
        raise LikenessError(
            "A scene dataset and separate subjects were linked together", fix="Link one of the two"
        )
    if dataset is not None:
        words = tuple(Word(token=member.token, noun=member.noun) for member in dataset.members)
        return joint_material(dataset.folder.name, words, scene_photos(dataset)), words
    if len(subjects) == 1:
        return subjects[0], ()
    if not subjects:
        raise LikenessError("Nothing to learn is linked", expected="a scene dataset, or one to four subjects")
    return joint_subject(subjects)


def _replaced(config: Any, **changes: Any) -> Any:
    from dataclasses import replace

    return replace(config, **changes)


def _score(
    known: AppliedModel, images_BHW3: Any, prompts: str, subjects: list[Subject], chosen: str
) -> Generator[Phase, None, CompositionCard]:
    from ..scoring.composition import open_detector, score_compositions, sought_of
    from ..trainers.events import Phase

    lines = prompts_of(prompts, len(images_BHW3), node="Score Composition")
    yield Phase("loading", 0, 1)
    encoders = judges.open_judges(known.base, chosen)
    detector = open_detector(judges.judges_of(known.base, chosen), roots=judges.roots())
    words = _words_of(known)
    sought = [sought_of(s, encoders.clip, word=words.get(s.class_noun, "")) for s in subjects]
    card = score_compositions(list(images_BHW3.permute(0, 3, 1, 2)), lines, sought, detector, encoders)
    yield Phase("scoring", len(lines), len(lines))
    return card


def _words_of(known: AppliedModel) -> dict[str, str]:
    """What the applied concepts call a noun: "<rex> dog"."""
    found: dict[str, str] = {}
    for concept, _ in known.concepts:
        words = concept.metadata.get("words")
        found |= (
            {noun: f"{t} {noun}" for t, noun in words} if words else {concept.class_noun: concept.trigger}
        )
    return found
