"""What was learned, on ComfyUI's own MODEL and CLIP: LoRA and deltas as patches, embeddings as words.

NeTI's words, which differ at every layer and timestep, are ``mapped``'s.
"""
# Shapes: O I output and input features, R rank, N vectors, D text width.

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

from ..concepts.formats import EMBEDDING
from ..core.errors import LikenessError
from .mapped import Word, check_shape, give_layers_their_own, marking, stand_in

if TYPE_CHECKING:
    from torch import Tensor

    from ..concepts.concept import Concept

    Tensors = Mapping[str, Tensor]

log = logging.getLogger(__name__)
SUFFIXES = {"lora_A": ".lora_down.weight", "lora_B": ".lora_up.weight", "weight": ".diff", "bias": ".diff_b"}
# Core's names of text encoders: in its state dict the part of ours, in its tokenizers the embedding's key.
PARTS = {"clip_l": "text_encoder", "clip_h": "text_encoder", "clip_g": "text_encoder_2"}
ROWS = {"clip_l": "clip_l", "clip_h": "clip_l", "clip_g": "clip_g"}


def with_concepts(model: Any, clip: Any, concepts: Sequence[tuple[Concept, float]]) -> tuple[Any, Any]:
    """Clones of the two with every concept at work; the given ones stay as they are.

    Raises LikenessError naming the concept when nothing of it fits, or a layer has another shape.
    """
    from ..backbones.mapper import mapper_from_tensors
    from ..concepts.loading import load_tensors

    model, clip = model.clone(), clip.clone()
    layers = max(model.model.model_config.unet_config["num_res_blocks"])
    words: dict[str, Tensors] = {}
    mapped: list[Word] = []
    for concept, strength in concepts:
        tensors = load_tensors(concept, layers_per_block=layers)
        if concept.trigger in words and concept.kind in ("embedding", "neti"):
            raise LikenessError(f"Two concepts answer to {concept.trigger!r}", fix="Apply one of them")
        if concept.kind == "neti":
            mapper = mapper_from_tensors(tensors)
            check_shape(model, mapper, concept.path.name)
            mapped.append(Word(mapper, stand_in(mapper)))
            words[concept.trigger] = {"clip_l": mapped[-1].row_D[None]}
            continue
        if concept.kind == "embedding":
            words[concept.trigger] = tensors
            continue
        carried = _carried(tensors)
        if clash := carried.keys() & words.keys():
            raise LikenessError(f"Two concepts answer to {min(clash)!r}", fix="Apply one of them")
        words |= carried
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(EMBEDDING)}
        patches = _patches(concept, tensors, _places(model, clip))
        model.add_patches(patches, strength)
        clip.add_patches(patches, strength)
    if words:
        clip.tokenizer = _knowing(clip.tokenizer, words)
    if mapped:
        clip = marking(clip, mapped)
        give_layers_their_own(model, clip)
    return model, clip


# --- weights ---------------------------------------------------------------------------------------

Places = dict[str, tuple[str, int]]  # "unet.<module>" to core's parameter and its size


def _places(model: Any, clip: Any) -> Places:
    import comfy.utils

    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    sizes = {key: weight.numel() for key, weight in model.model.named_parameters()}
    ours = {f"unet.{name}": f"diffusion_model.{key}" for name, key in names.items()}
    for key, weight in clip.cond_stage_model.named_parameters():
        encoder, _, rest = key.partition(".transformer.")
        if encoder in PARTS:
            ours[f"{PARTS[encoder]}.{rest.removeprefix('text_model.')}"] = key
            sizes[key] = weight.numel()
    ending = ".weight"
    return {
        name.removesuffix(ending): (key, sizes[key])
        for name, key in ours.items()
        if name.endswith(ending) and key in sizes
    }


def _patches(concept: Concept, tensors: Tensors, places: Places) -> dict[str, Any]:
    """Core's patches by its parameter names. What has no place is logged."""
    import comfy.lora
    import torch

    layers = {name: name.rpartition(".")[0] for name in sorted(tensors)}
    known = {name: place for name, place in layers.items() if place in places}
    _check(concept, tensors, known, places, lost=sorted(layers.keys() - known.keys()))
    scale = float(concept.metadata.get("alpha", 1)) / float(concept.metadata.get("rank", 1))
    named = {place + SUFFIXES[name.removeprefix(place + ".")]: tensors[name] for name, place in known.items()}
    alphas = {
        place + ".alpha": torch.tensor(scale * tensors[name].shape[0])
        for name, place in known.items()
        if name.endswith(".lora_A")
    }
    targets = {place: places[place][0] for place in known.values()}
    patches: dict[str, Any] = comfy.lora.load_lora(named | alphas, targets)
    return patches


def _check(
    concept: Concept, tensors: Tensors, known: Mapping[str, str], places: Places, lost: list[str]
) -> None:
    if not known:
        raise LikenessError(
            f"{concept.path}: this model has no layer by the name of any of its {len(lost)} tensors",
            expected="a concept of this kind of model",
        )
    if lost:
        log.warning("%s: %d tensors have no place on this model: %s", concept.path, len(lost), lost)
    for name, place in known.items():
        size, here = _size(tensors, name, place), places[place][1]
        if size not in (None, here):
            raise LikenessError(
                f"{concept.path}: {name} is for a layer of {size} weights, this model's has {here}",
                expected="a concept of this base model",
            )


def _size(tensors: Tensors, name: str, place: str) -> int | None:
    """How many weights the layer has by this tensor, where that shows."""
    if name.endswith(".lora_A"):
        down_RI, up_OR = tensors[name], tensors[place + ".lora_B"]
        return up_OR.shape[0] * prod(down_RI.shape[1:])
    return tensors[name].numel() if name == place + ".weight" else None


# --- words -----------------------------------------------------------------------------------------


def _carried(tensors: Tensors) -> dict[str, Tensors]:
    """The words in a LoRA or delta, such as Custom Diffusion's, each as an embedding file would hold it."""
    return {
        name.removeprefix(EMBEDDING): {"clip_l": rows_ND}
        for name, rows_ND in tensors.items()
        if name.startswith(EMBEDDING)
    }


def _knowing(tokenizer: Any, words: Mapping[str, Tensors]) -> Any:
    """A copy of core's tokenizer that reads each word as its embedding's rows.

    Core has a place for vectors among tokens: what ``embedding:NAME`` stands for. The word becomes such a
    name, one that no file can have.
    """
    names = {word: f"?{number}" for number, word in enumerate(words)}
    known = copy.copy(tokenizer)
    for key, inner in vars(tokenizer).items():
        if key in ROWS:
            rows_ND = {
                names[word]: tensors[ROWS[key]] for word, tensors in words.items() if ROWS[key] in tensors
            }
            reader = copy.copy(inner)
            reader._try_get_embedding = partial(_find, rows_ND, inner._try_get_embedding)
            setattr(known, key, reader)
    known.tokenize_with_weights = partial(_spelled, names, known.tokenize_with_weights)
    return known


def _spelled(
    names: Mapping[str, str], tokenize: Callable[..., Any], text: str, *args: Any, **options: Any
) -> Any:
    for word in sorted(names, key=len, reverse=True):  # <fish-2> before <fish>
        text = text.replace(word, f" embedding:{names[word]} ")
    return tokenize(text, *args, **options)


def _find(rows_ND: Tensors, otherwise: Callable[[str], Any], name: str) -> Any:
    """Core's ``_try_get_embedding``: the rows, and the text that is left."""
    first, _, rest = name.strip().partition(" ")
    return (rows_ND[first], rest.strip()) if first in rows_ND else otherwise(name)
