"""Concepts at work on a backbone for the length of a ``with``: several at once, each at its strength.

The base weights of a LoRA's layers are never written to: its part is added to what the layer puts out, so
that there is nothing to undo but a hook. Deltas are added to the weights and taken back exactly.
"""
# Shapes: O I output and input features, R rank, K kernel edge, N vectors, D text width.

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..backbones.base import Backbone, BaseModel, Part, WordMapper
from ..backbones.loading import content_hash
from ..backbones.lora import Adapter
from ..backbones.mapper import mapper_from_tensors
from ..core.errors import LikenessError
from . import formats
from .concept import Concept
from .loading import load_tensors
from .words import joined_rows, split_words

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A concept's tensors as they sit on one model."""

    # Down and up of a LoRA by part and module path; scale is alpha / rank, of every pair.
    pairs: Mapping[tuple[Part, str], tuple[Tensor, Tensor]] = field(default_factory=dict)
    scale: float = 1.0
    deltas: Mapping[str, Tensor] = field(default_factory=dict)  # by "<part>.<parameter>"
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)  # by trigger, (N, D)
    mappers: Mapping[str, WordMapper] = field(default_factory=dict)  # by trigger
    unmatched: Mapping[str, str] = field(default_factory=dict)  # what the model has no place for, and why


@contextmanager
def apply_concepts(
    backbone: Backbone, concepts: Sequence[tuple[Concept, float]], *, other_base: bool = False
) -> Iterator[Backbone]:
    """The backbone with every ``(concept, strength)`` at work; as before on exit, also after an error.

    Effects add. Strength 1 is as trained, 0 is off, negative turns away; a learned word (embedding, NeTI)
    has none and is named by its trigger in a prompt. ``other_base`` lets a concept work on another base
    model of its family, with a warning. Raises LikenessError before anything is changed when a concept does
    not fit.
    """
    fits = [(fit(concept, backbone, other_base=other_base), strength) for concept, strength in concepts]
    _check_words(concepts, [one for one, _ in fits])
    embeddings = {word: rows for one, _ in fits for word, rows in one.embeddings.items()}
    mappers = {word: mapper for one, _ in fits for word, mapper in one.mappers.items()}
    with ExitStack() as stack:
        for one, strength in fits:
            if strength == 0:
                continue
            if one.deltas:
                backbone = stack.enter_context(backbone.patched(one.deltas, strength))
            for (part, path), (down, up) in one.pairs.items():
                layer = backbone.module(part).get_submodule(path)
                adapter = Adapter(down.to(backbone.device), up.to(backbone.device), strength * one.scale)
                stack.callback(layer.register_forward_hook(adapter).remove)
        backbone = backbone.with_embeddings(embeddings) if embeddings else backbone
        yield backbone.with_mappers(mappers) if mappers else backbone


def fit(concept: Concept, backbone: Backbone, *, other_base: bool = False) -> Fit:
    """Find the place of every tensor on the model; what has none is logged and listed.

    Raises LikenessError naming the mismatch when the base model is another one, shapes differ, or nothing
    has a place at all.
    """
    _check_base(concept, backbone, other_base)
    layers = getattr(getattr(backbone.module("unet"), "config", None), "layers_per_block", 2)
    tensors = load_tensors(concept, layers_per_block=layers)
    if concept.kind == "neti":
        mapper = mapper_from_tensors(tensors).to(backbone.device)
        backbone.with_mappers({concept.trigger: mapper})  # raises, when it is for another shape
        return Fit(mappers={concept.trigger: mapper})
    if concept.kind == "embedding":
        rows_ND = joined_rows(tensors, backbone, file=concept.path.name)
        return Fit(embeddings={concept.trigger: rows_ND})
    bundled, weights = split_words(tensors)
    placed, unmatched = _place(weights, backbone)
    _check_placed(concept, placed, unmatched, backbone)
    scale = concept.metadata["alpha"] / concept.metadata["rank"] if concept.kind == "lora" else 1.0
    rows = {token: joined_rows(own, backbone, file=concept.path.name) for token, own in bundled.items()}
    return Fit(
        pairs=_pairs(placed), scale=scale, deltas=_deltas(placed), embeddings=rows, unmatched=unmatched
    )


# --- does it fit ---------------------------------------------------------------------------------------


def check_base(concept: Concept, base: BaseModel) -> None:
    """Raise LikenessError when the concept says that it was learned on another base model than ``base``.

    Needs no loaded model, but reads its files once for their hash.
    """
    if concept.base_hash and concept.base_hash != (here := content_hash(base)):
        raise _other_base(concept, base, here)


def _check_base(concept: Concept, backbone: Backbone, other_base: bool) -> None:
    if concept.family and concept.family != backbone.family:
        raise LikenessError(
            f"{concept.path.name} was made for the {concept.family} family, and {backbone.base.source} is "
            f"{backbone.family}",
            fix=f"Load a base model of the {concept.family} family",
        )
    if concept.base_hash == backbone.content_hash:
        return
    if concept.base_hash and not other_base:
        raise _other_base(concept, backbone.base, backbone.content_hash)
    known = f"was trained on another one ({concept.base_hash[:12]})" if concept.base_hash else "does not say"
    logger.warning("%s: the base model may differ: the file %s", concept.path.name, known)


def _other_base(concept: Concept, base: BaseModel, content: str) -> LikenessError:
    return LikenessError(
        f"The concept {concept.path.name} was trained on another base model ({concept.base_hash[:12]}) than "
        f"{base.source} ({content[:12]})",
        fix="Load the base model that it was trained on",
    )


@dataclass(frozen=True)
class _Place:
    part: Part
    path: str  # of the module, as this model names it
    module: nn.Module
    tensors: dict[str, Tensor]  # by role: lora_A and lora_B, weight, bias


def _place(tensors: Mapping[str, Tensor], backbone: Backbone) -> tuple[list[_Place], dict[str, str]]:
    """The model's layers that the tensors belong to, and the names that belong to none."""
    layers: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        module, _, role = rest.rpartition(".")
        layers.setdefault((part, module), {})[role] = tensor
    own = _own_layers(backbone)
    placed: list[_Place] = []
    unmatched: dict[str, str] = {}
    for (part, name), by_role in layers.items():
        if (part, name) in own:
            placed.append(_Place(*own[part, name], by_role))
        else:
            unmatched |= {f"{part}.{name}.{role}": "the model has no such layer" for role in by_role}
    return placed, unmatched


def _own_layers(backbone: Backbone) -> dict[tuple[str, str], tuple[Part, str, nn.Module]]:
    """Layers by the name that files use, whether or not this transformers version has ``text_model.``."""
    return {
        (part, formats.canonical(path)): (part, path, module)
        for part in backbone.parts
        for path, module in backbone.module(part).named_modules()
    }


def _check_placed(
    concept: Concept, placed: Sequence[_Place], unmatched: Mapping[str, str], backbone: Backbone
) -> None:
    wrong = [text for place in placed for text in _wrong_shapes(place)]
    if wrong or not placed:
        first = wrong[0] if wrong else f"{next(iter(unmatched))} and {len(unmatched) - 1} more have no place"
        raise LikenessError(
            f"{concept.path.name} is for another model than {backbone.base.source}: {first}"
            + (f" ({len(wrong)} layers differ)" if wrong else ""),
            fix="Load the base model that it was trained on",
        )
    if unmatched:
        logger.warning(
            "%s: %d tensors have no place on the model and are left out: %s",
            concept.path.name,
            len(unmatched),
            ", ".join(sorted(unmatched)),
        )


def _wrong_shapes(place: _Place) -> list[str]:
    return [
        f"{place.part}.{place.path} is {_shape(place, role)}, the file's {role} {tuple(tensor.shape)}"
        for role, tensor in place.tensors.items()
        if not _has_shape(place, role, tensor)
    ]


def _shape(place: _Place, role: str) -> tuple[int, ...]:
    own = getattr(place.module, "bias" if role == "bias" else "weight", None)
    return tuple(own.shape) if isinstance(own, Tensor) else ()


def _has_shape(place: _Place, role: str, tensor: Tensor) -> bool:
    """A linear layer is a convolution of one pixel in some models, so a pair goes by its features."""
    shape = _shape(place, role)
    if role in ("weight", "bias"):
        return tuple(tensor.shape) == shape
    if not isinstance(place.module, (nn.Linear, nn.Conv2d)):
        return False
    if role == "lora_A":
        return tensor[0].numel() == math.prod(shape[1:])
    return tensor.shape[0] == shape[0] and tensor[0].numel() == tensor.shape[1]


# --- at work -------------------------------------------------------------------------------------------


def _pairs(placed: Sequence[_Place]) -> dict[tuple[Part, str], tuple[Tensor, Tensor]]:
    """Down and up of each layer, in the layer's own shape."""
    pairs = {}
    for place in placed:
        if "lora_A" in place.tensors:
            shape = _shape(place, "lora_A")
            down = place.tensors["lora_A"].reshape(-1, *shape[1:])
            up = place.tensors["lora_B"].reshape(shape[0], -1, *(1,) * (len(shape) - 2))
            pairs[place.part, place.path] = (down, up)
    return pairs


def _deltas(placed: Sequence[_Place]) -> dict[str, Tensor]:
    return {
        f"{place.part}.{place.path}.{role}": tensor
        for place in placed
        for role, tensor in place.tensors.items()
        if role in ("weight", "bias")
    }


def _check_words(concepts: Sequence[tuple[Concept, float]], fits: Sequence[Fit]) -> None:
    """Two concepts that answer to the same word are an error."""
    found: set[str] = set()
    for (concept, strength), one in zip(concepts, fits, strict=True):
        for word in (*one.embeddings, *one.mappers):
            if word in found:
                raise LikenessError(
                    f"Two concepts answer to {word!r}, the second is {concept.path.name}",
                    fix="Apply one of them, or train one anew with another placeholder",
                )
            if strength != 1 and concept.kind in ("embedding", "neti"):
                logger.warning("%s: strength %g has no effect on a word", concept.path.name, strength)
            found.add(word)
