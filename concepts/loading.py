"""Opening what was learned, here or elsewhere, and saying plainly what in a file nothing was made of."""
# Shapes: O I output and input features, R rank, N vectors, D text width.

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backbones.inference import normal_tensors
from ..backbones.mapper import mapper_from_tensors
from ..core.errors import LikenessError
from ..core.hashing import hash_file
from ..core.tensorfile import read_tensors
from . import formats
from .concept import Concept, Kind

logger = logging.getLogger(__name__)

# Text widths tell the public families apart: of a UNet's cross-attention, and of an embedding's rows.
FAMILY_BY_WIDTH = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
FAMILY_BY_KOHYA = {"sd_v1": "sd1", "sd_v2": "sd2", "sdxl_base_v1-0": "sdxl"}
EMBEDDING_KEYS = {"emb_params": "clip_l", "clip_l": "clip_l", "clip_h": "clip_l", "clip_g": "clip_g"}
FIELDS = ("kind", "trigger", "class_noun", "family", "base_hash")  # of a concept, beside its metadata
Alpha = Callable[[str, str, int], float]  # of part, module and rank
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # what PEFT saves
MAX_VECTORS = 75  # a CLIP prompt has no more places


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A file's tensors under our names. ``scale`` is alpha / rank, the same for every layer."""

    kind: Kind
    tensors: Mapping[str, Tensor]
    unmatched: Mapping[str, str]
    token: str = ""  # the word that a diffusers embedding is filed under
    scale: float = 1.0


def load_concept(path: Path) -> Concept:
    """Open a LoRA, embedding, delta or NeTI mapper: ours, or a public one in kohya's, diffusers', PEFT's,
    OneTrainer's or core's own keys.

    ``unmatched`` lists every key that nothing was made of, with the reason; so does the log. Raises
    LikenessError naming the file when it is no safetensors file, belongs to a model of another kind, or holds
    nothing of use.
    """
    tensors, metadata = read_tensors(path)
    contents = interpret(path, tensors, metadata)
    ours = _our_metadata(path, metadata)
    known = {key: value for key, value in ours.items() if key not in FIELDS} if ours else metadata
    for key, reason in contents.unmatched.items():
        logger.warning("%s: %s is left out: %s", path.name, key, reason)
    return Concept(
        kind=contents.kind,
        path=path,
        sha256=hash_file(path),
        trigger=_text(ours, "trigger") or _foreign_trigger(path, metadata, contents),
        class_noun=_text(ours, "class_noun"),
        family=_text(ours, "family") or _foreign_family(metadata, contents),
        base_hash=_text(ours, "base_hash"),
        metadata=dict(known) | _rank_and_alpha(contents),
        unmatched=contents.unmatched,
    )


@normal_tensors  # type: ignore[untyped-decorator,unused-ignore]
def load_tensors(concept: Concept, *, layers_per_block: int = 2) -> dict[str, Tensor]:
    """The concept's tensors under the trainer's names (see ``Artifact``), a text encoder's without
    ``text_model.``. Every LoRA layer has the scale ``metadata["alpha"] / metadata["rank"]``.
    ``layers_per_block`` is the UNet's, for foreign files with the original code's names (2 in public models).

    Raises LikenessError when the file is not the one that was opened.
    """
    if hash_file(concept.path) != concept.sha256:
        raise LikenessError(
            f"{concept.path} has changed since it was opened", fix="Open it again: run Load Concept anew"
        )
    tensors, metadata = read_tensors(concept.path)
    return dict(interpret(concept.path, tensors, metadata, layers_per_block=layers_per_block).tensors)


# --- what the keys mean ------------------------------------------------------------------------------


def interpret(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, layers_per_block: int = 2
) -> Contents:
    """The file's tensors under our names; LikenessError naming ``path`` when there is nothing of use."""
    bad = [key for key in sorted(tensors) if not torch.isfinite(tensors[key].float()).all()]
    if bad:
        raise LikenessError(f"{path}: {bad[0]} holds values that are not finite ({len(bad)} tensors)")
    contents = (
        _mapper(path, tensors)
        or _embedding(tensors)
        or _weights(tensors, _alpha_elsewhere(path, metadata), layers_per_block)
    )
    if not contents.tensors:
        raise _nothing_of_use(path, contents.unmatched)
    return contents


def _nothing_of_use(path: Path, unmatched: Mapping[str, str]) -> LikenessError:
    other = formats.other_model(unmatched)
    first = next(iter(unmatched.items()), None)
    example = f" ({first[0]}: {first[1]})" if first else ""
    return LikenessError(
        f"{path} is for {other}{example}" if other else f"{path} holds nothing learned{example}",
        expected="a LoRA, an embedding or a delta for Stable Diffusion 1.x, 2.x or XL",
    )


def _mapper(path: Path, tensors: Mapping[str, Tensor]) -> Contents | None:
    """A word per timestep and layer, of this pack: nobody else has a format for it."""
    if not tensors or not all(key.startswith(formats.NETI) for key in tensors):
        return None
    named = {key.removeprefix(formats.NETI): tensor for key, tensor in tensors.items()}
    try:
        mapper_from_tensors(named)
    except LikenessError as error:
        raise LikenessError(f"{path}: {error.problem}", fix="Save it again, or train it anew") from error
    return Contents(kind="neti", tensors=named, unmatched={})


def _embedding(tensors: Mapping[str, Tensor]) -> Contents | None:
    """Rows for the text encoder: by known keys, or a lone table filed under its token (diffusers)."""
    known = {key: tensors[key] for key in tensors if key in EMBEDDING_KEYS}
    lone = next(iter(tensors)) if len(tensors) == 1 else ""
    token = lone if not known and not formats.is_weight_key(lone) else ""
    rows = known or ({token: tensors[token]} if token else {})
    if not rows or not all(_are_rows(tensor) for tensor in rows.values()):
        return None
    return Contents(
        kind="embedding",
        tensors={EMBEDDING_KEYS.get(key, "clip_l"): t.reshape(-1, t.shape[-1]) for key, t in rows.items()},
        unmatched={key: "no text encoder has this name" for key in sorted(tensors) if key not in rows},
        token=token,
    )


def _are_rows(tensor: Tensor) -> bool:
    rows = tensor.shape[0] if tensor.ndim == 2 else 1
    return tensor.ndim in (1, 2) and tensor.is_floating_point() and 0 < rows <= MAX_VECTORS


def _weights(tensors: Mapping[str, Tensor], alpha_of: Alpha, layers_per_block: int) -> Contents:
    """LoRA pairs and whole differences; what is half there or part of another method is left, and said."""
    bundled = {key: name for key in sorted(tensors) if (name := formats.bundled_name(key))}
    parsed_keys = {
        key: formats.parse_key(key, layers_per_block) for key in sorted(tensors) if key not in bundled
    }
    known = {key: parsed for key, parsed in parsed_keys.items() if parsed is not None}
    unmatched = dict.fromkeys(parsed_keys.keys() - known.keys(), "no layer of Stable Diffusion has this name")
    layers: dict[tuple[str, str], dict[str, str]] = {}
    for key, parsed in known.items():
        layers.setdefault((parsed.part, parsed.module), {})[parsed.role] = key
    for keys_of_layer in layers.values():
        reason = _why_unusable(keys_of_layer, tensors)
        if reason:
            unmatched |= dict.fromkeys(keys_of_layer.values(), reason)
    usable = {place: keys for place, keys in layers.items() if unmatched.keys().isdisjoint(keys.values())}
    contents = _named(usable, tensors, unmatched, alpha_of)
    rows = {name: tensors[key].reshape(-1, tensors[key].shape[-1]) for key, name in bundled.items()}
    return replace(contents, tensors={**contents.tensors, **rows})


def _why_unusable(by_role: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Why a layer's tensors cannot be used, or ``""``."""
    down, up = (tensors.get(by_role.get(role, "")) for role in ("lora_A", "lora_B"))
    if "unread" in by_role:
        return f"{by_role['unread'].rpartition('.')[2]} belongs to a method that is not read here"
    if (down is None) != (up is None):
        return "the other half of the pair is missing"
    if down is None or up is None:
        return "" if set(by_role) & {"weight", "bias"} else "it has no weights"
    if down.ndim < 2 or up.ndim < 2 or down.shape[0] != up.shape[1] or 0 in (*down.shape, *up.shape):
        return f"the pair does not fit together: {tuple(up.shape)} x {tuple(down.shape)}"
    if "alpha" in by_role and tensors[by_role["alpha"]].numel() != 1:
        return "its alpha is not one number"
    return ""


def _named(
    layers: Mapping[tuple[str, str], Mapping[str, str]],
    tensors: Mapping[str, Tensor],
    unmatched: Mapping[str, str],
    alpha_of: Alpha,
) -> Contents:
    named: dict[str, Tensor] = {}
    scales: dict[str, float] = {}
    for (part, module), by_role in layers.items():
        place = f"{part}.{module}"
        named |= {f"{place}.{role}": tensors[key] for role, key in by_role.items() if role != "alpha"}
        if "lora_A" in by_role:
            rank = tensors[by_role["lora_A"]].shape[0]
            stored = tensors[by_role["alpha"]].item() if "alpha" in by_role else None
            scales[place] = (alpha_of(part, module, rank) if stored is None else stored) / rank
    scale = _fold_scales(named, scales)
    kind: Kind = "lora" if scales else "delta"
    return Contents(kind=kind, tensors=named, unmatched=unmatched, scale=scale)


def _fold_scales(named: dict[str, Tensor], scales: Mapping[str, float]) -> float:
    """The scale of all layers; where layers differ it goes into each ``lora_B``, and 1 is left."""
    values = set(scales.values())
    if len(values) == 1:
        return values.pop()
    for place, scale in scales.items():
        named[f"{place}.lora_B"] = named[f"{place}.lora_B"].float() * scale
    return 1.0


def _alpha_elsewhere(path: Path, metadata: Mapping[str, str]) -> Alpha:
    """The alphas of a file that has none among its tensors; a layer's rank where nothing is said."""
    config = path.with_name(ADAPTER_CONFIG)
    if path.name == ADAPTER and config.is_file():
        return _peft_alpha(config)
    by_part = _diffusers_alpha(metadata)
    return lambda part, module, rank: by_part.get(part, rank)


def _peft_alpha(path: Path) -> Alpha:
    """PEFT's are in the settings beside the file: one, or some layers' own, by the ends of their names."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        one, rs = float(config["lora_alpha"]), bool(config.get("use_rslora"))
        own = {str(name): float(value) for name, value in (config.get("alpha_pattern") or {}).items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise LikenessError(
            f"{path} cannot be read: {error!r}", expected="the settings that PEFT writes beside an adapter"
        ) from error

    def alpha_of(part: str, module: str, rank: int) -> float:
        alpha = next((a for name, a in own.items() if f".{module}".endswith(f".{name}")), one)
        return alpha * math.sqrt(rank) if rs else alpha  # rsLoRA's scale is alpha / sqrt(rank)

    return alpha_of


def _diffusers_alpha(metadata: Mapping[str, str]) -> dict[str, float]:
    """Alphas by part that newer diffusers writes into the metadata instead of the tensors."""
    table = _json_object(metadata.get("lora_adapter_metadata", "{}"))
    found = {part: table.get(f"{part}.lora_alpha") for part in ("unet", "text_encoder", "text_encoder_2")}
    return {part: float(alpha) for part, alpha in found.items() if isinstance(alpha, (int, float))}


# --- what the metadata say ---------------------------------------------------------------------------


def _our_metadata(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    prefix = "likeness."
    try:
        return {
            key.removeprefix(prefix): json.loads(value)
            for key, value in metadata.items()
            if key.startswith(prefix)
        }
    except (ValueError, RecursionError) as error:
        raise LikenessError(
            f"{path}: its likeness metadata are damaged: {error}", fix="Save the concept again"
        ) from error


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(table: Mapping[str, Any], key: str) -> str:
    value = table.get(key, "")
    return value if isinstance(value, str) else ""


def _rank_and_alpha(contents: Contents) -> dict[str, Any]:
    """As the file's tensors have them, whatever its metadata claim; the highest rank where layers differ."""
    ranks = [tensor.shape[0] for name, tensor in contents.tensors.items() if name.endswith(".lora_A")]
    return {"rank": max(ranks), "alpha": contents.scale * max(ranks)} if ranks else {}


def _foreign_trigger(path: Path, metadata: Mapping[str, str], contents: Contents) -> str:
    """The word that the file's maker wrote down. An embedding needs one word: else it goes by its file."""
    said = contents.token or metadata.get("modelspec.trigger_phrase", "")
    return "_".join((said or f"<{path.stem}>").split()) if contents.kind in ("embedding", "neti") else said


def _foreign_family(metadata: Mapping[str, str], contents: Contents) -> str:
    said = FAMILY_BY_KOHYA.get(metadata.get("ss_base_model_version", ""), "")
    if contents.kind == "embedding":
        rows = contents.tensors
        return "sdxl" if "clip_g" in rows else said or FAMILY_BY_WIDTH.get(rows["clip_l"].shape[1], "")
    return said or _family_by_width(contents.tensors.items())


def _family_by_width(named: Iterable[tuple[str, Tensor]]) -> str:
    """By what enters cross-attention's keys: the text encoder's width."""
    widths = (t.shape[1] for name, t in named if ".attn2.to_k." in name and not name.endswith(".lora_B"))
    return FAMILY_BY_WIDTH.get(next(widths, 0), "")
