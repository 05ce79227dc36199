"""Small graphs for a real ComfyUI, on Toybox: good ones and bad ones. Inputs not named are the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..concepts.concept import Artifact
from ..concepts.saving import save_concept
from ..headless.graph import has_widget
from ..headless.runner import known_classes, schemas_of
from .comfyui import Graph

EXAMPLE = "example:star-turtle"


@cache
def defaults(class_type: str) -> Mapping[str, Any]:
    """The widgets of one of our nodes, as a new node has them."""
    schema = schemas_of(known_classes()).get(class_type)
    return {} if schema is None else {i.id: i.default for i in schema.inputs if has_widget(i)}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": {**defaults(class_type), **inputs}}


def subject() -> Graph:
    return {
        "photos": node("LikenessLoadSubject", folder=EXAMPLE, class_noun="turtle"),
        "subject": node("LikenessSplitHeldOut", method="count", subject=["photos", 0]),
        "base": node("LikenessLoadBaseModel"),
    }


def training(method: str = "TextualInversion", **settings: Any) -> Graph:
    """``method`` on five photos; its concept is output 0 of the node "train"."""
    few = {"steps": 5, "batch_size": 1, "sample_every": 0}
    train = node(f"LikenessTrain{method}", base=["base", 0], subject=["subject", 0], **{**few, **settings})
    return {**subject(), "train": train}


def monitored(steps: int = 8, every: int = 4, **settings: Any) -> Graph:
    """A training with everything that takes time: class images, caching, steps, samples, held-out scores.

    Samples and scores come ``every`` so many steps.
    """
    learning = {"steps": steps, "batch_size": 2, "sample_every": every, **settings}
    graph = training("DreamBooth", prior=["prior", 0], monitor=["monitor", 0], **learning)
    graph["prior"] = node("LikenessPriorPreservation", num_images=6, steps=6, batch_size=2)
    graph["monitor"] = node("LikenessHeldOutMonitor", every=every, steps=3)
    return graph


def pictures(**settings: Any) -> Graph:
    """One picture by the untouched model."""
    few = {"prompts": "a photo of a turtle", "images_per_prompt": 1, "steps": 1, "guidance": 1.0}
    return {
        "base": node("LikenessLoadBaseModel"),
        "draw": node("LikenessGenerate", model=["base", 0], **{**few, **settings}),
        "show": node("PreviewImage", images=["draw", 0]),
    }


def applied(file: str, **settings: Any) -> Graph:
    """A picture with a concept of models/, which is saved once more."""
    graph = pictures(prompts="a photo of {}", subject_words="a turtle")
    graph["concept"] = node("LikenessLoadConcept", file=file)
    graph["apply"] = node("LikenessApplyConcept", model=["base", 0], concept=["concept", 0], **settings)
    graph["save"] = node("LikenessSaveConcept", concept=["concept", 0], name="again")
    graph["draw"]["inputs"]["model"] = ["apply", 0]
    return graph


@dataclass(frozen=True)
class Bad:
    """A graph with one thing wrong: the input ``name`` of ``node``. The answer must name both.

    ``graph`` is right but for that; ``words`` must be in the answer too.
    """

    graph: Graph
    node: str
    name: str
    value: Any
    words: str = ""

    @property
    def broken(self) -> Graph:
        graph = deepcopy(self.graph)
        graph[self.node]["inputs"][self.name] = self.value
        return graph


def bad_prompts(foreign: str) -> dict[str, Bad]:
    """What the API may bring. ``foreign`` is a LoRA in models/ that another base model has learned."""
    saved = training(seed=1)
    saved["save"] = node("LikenessSaveConcept", concept=["train", 0])
    named = training()
    named["subject"]["inputs"] |= {"method": "names", "names": "train_0.png"}
    report = {"subject": subject()["photos"], "report": node("LikenessReport", subject=["subject", 0])}
    return {
        "a base that is not there": Bad(pictures(), "base", "model", "checkpoints/none.safetensors"),
        "a path to nothing": Bad(pictures(), "base", "path", "/no/such/model"),
        "no option": Bad(pictures(), "base", "dtype", "fp64"),
        "out of range": Bad(pictures(), "draw", "steps", 0),
        "far out of range": Bad(pictures(), "draw", "guidance", 1e300),
        "a word for a number": Bad(pictures(), "draw", "seed", "many"),
        "a list for a scalar": Bad(pictures(), "draw", "images_per_prompt", [1, 2, 3]),
        "nothing": Bad(pictures(), "draw", "steps", None),
        "an empty text": Bad(pictures(), "draw", "prompts", " \n "),
        "a socket of another type": Bad(pictures(), "draw", "model", ["draw", 1]),
        "a folder that climbs": Bad(training(), "photos", "folder", "../../etc", "'..'"),
        "an example that climbs": Bad(training(), "photos", "folder", "example:../../core", "'..'"),
        "a folder that is not there": Bad(training(), "photos", "folder", "no-such-photos"),
        "no class noun": Bad(training(), "photos", "class_noun", " "),
        "a split that takes all": Bad(training(), "subject", "count", 99, "99 photos"),
        "a photo that is not there": Bad(named, "subject", "names", "none.png", "none.png"),
        "no such preset": Bad(training(), "train", "preset", "magic"),
        "a concept that is not there": Bad(
            applied(foreign), "concept", "file", "loras/shared.safetensors", "shared.safetensors"
        ),
        "a file outside of models": Bad(applied(foreign), "concept", "file", "loras/../../x.safetensors"),
        "a concept of another base": Bad(pictures_with(foreign), "apply", "concept", ["concept", 0]),
        "a strength out of range": Bad(pictures_with(foreign), "apply", "strength", 1e9),
        "a name that climbs": Bad(saved, "save", "name", "../../evil", "name"),
        "a name with a zero in it": Bad(saved, "save", "name", "a\x00b", "name"),
        "a report that climbs": Bad(report, "report", "name", "../evil", "name"),
    }


def pictures_with(file: str) -> Graph:
    """Nothing but a picture with the concept."""
    graph = applied(file)
    del graph["save"]
    return graph


def write_foreign_lora(models: Path) -> str:
    """A LoRA in ``models`` that says it was learned on another base of the family; its name in the node."""
    block = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
    tensors = {f"{block}.lora_A": torch.zeros(1, 64), f"{block}.lora_B": torch.zeros(64, 1)}
    artifact = Artifact(
        kind="lora", tensors=tensors, trigger="sks toy", class_noun="toy", metadata={"rank": 1, "alpha": 1.0}
    )
    saved = save_concept(artifact, models / "loras", "foreign", family="toybox", base_hash="0" * 64)
    return f"loras/{saved.path.name}"
