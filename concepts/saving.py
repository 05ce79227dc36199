"""Writing what was learned: one safetensors file that ComfyUI core, diffusers and A1111 load."""
# Shapes: O I output and input features, R rank, K kernel edge, N vectors, D text width.

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import LikenessError
from ..core.hashing import canonical
from ..core.paths import safe_name
from ..core.tensorfile import write_tensors
from . import formats
from .concept import Artifact, Concept
from .loading import load_concept, load_tensors

# How others name a family: kohya's ss_base_model_version, and modelspec.architecture without its ending.
KOHYA_BASE = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
ARCHITECTURE = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2-768-v",
    "sdxl": "stable-diffusion-xl-v1-base",
}
ARCHITECTURE_ENDING = {"lora": "lora", "delta": "lora", "embedding": "textual-inversion", "neti": "neti"}


def save_concept(artifact: Artifact, folder: Path, name: str, *, family: str, base_hash: str) -> Concept:
    """Write ``folder/<name>.safetensors`` whole or not at all, and open it as a concept.

    ``lora`` has kohya's keys; ``delta`` core's ``.diff`` patches; ``embedding`` one tensor ``emb_params``
    (SDXL: ``clip_l`` and ``clip_g``); ``neti`` its mapper under ``neti.``. The same artifact and names give
    the same bytes. Raises LikenessError for an unsafe name, values that are not finite, and tensors that no
    file key can hold.
    """
    path = folder / f"{safe_name(name, what='name of the concept')}.safetensors"
    tensors = _check_finite(_file_tensors(artifact, family), path)
    write_tensors(path, tensors, _metadata(artifact, name, family=family, base_hash=base_hash))
    return load_concept(path)


def to_lora_model(concept: Concept) -> dict[str, Tensor]:
    """What core's LORA_MODEL socket carries (Load LoRA Model, Save LoRA Weights): keys that core maps.

    A foreign file's keys are turned into kohya's. Raises LikenessError for an embedding.
    """
    if concept.kind == "neti":
        raise LikenessError(f"{concept.path.name} is a NeTI word, which is no LoRA", fix="Use Apply Concept")
    if concept.kind == "embedding":
        raise LikenessError(
            f"{concept.path.name} is an embedding, which is no LoRA",
            fix=f"Write embedding:{concept.path.stem} into a prompt",
        )
    tensors = load_tensors(concept)
    weights = {name: t for name, t in tensors.items() if not name.startswith(formats.EMBEDDING)}
    return _weight_tensors(weights, concept.metadata, concept.family)


def _file_tensors(artifact: Artifact, family: str) -> dict[str, Tensor]:
    if artifact.kind == "embedding":
        return _embedding_tensors(artifact.tensors)
    if artifact.kind == "neti":
        return {formats.NETI + name: tensor.contiguous() for name, tensor in artifact.tensors.items()}
    return _weight_tensors(artifact.tensors, artifact.metadata, family)


def _embedding_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A single encoder's rows go by ``emb_params``, kohya's name: readers take the only tensor there is."""
    names = set(tensors)
    if names not in ({"clip_l"}, {"clip_l", "clip_g"}) or any(t.ndim != 2 for t in tensors.values()):
        raise LikenessError(
            f"An embedding cannot hold {sorted(names)}", expected="clip_l (N, D), for SDXL also clip_g"
        )
    return dict(tensors) if "clip_g" in names else {"emb_params": tensors["clip_l"]}


def _weight_tensors(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], family: str
) -> dict[str, Tensor]:
    """File keys of LoRA pairs, each with its alpha, and of deltas."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(formats.EMBEDDING):
            out[formats.bundled_key(name)] = tensor.detach().contiguous()
            continue
        key = formats.file_key(name, family)
        _check_reads_back(name, key)
        out[key] = tensor.detach().contiguous()
        if name.endswith(".lora_A"):
            module = key.removesuffix(".lora_down.weight")
            out[f"{module}.alpha"] = torch.tensor(_alpha(metadata, rank=tensor.shape[0]))
    return out


def _alpha(metadata: Mapping[str, Any], *, rank: int) -> float:
    """Of one layer: readers scale by alpha / rank of that layer, and layers may differ in rank."""
    try:
        same_rank = int(metadata["rank"]) == rank
        return float(metadata["alpha"]) if same_rank else metadata["alpha"] / metadata["rank"] * rank
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise LikenessError(
            "A LoRA without its rank and alpha cannot be saved", expected="numbers in its metadata"
        ) from error


def _check_reads_back(name: str, key: str) -> None:
    """Kohya's underscores lose the dots, so a name must be one that the way back knows."""
    parsed = formats.parse_key(key)
    part, _, rest = name.partition(".")
    if parsed is None or parsed.name != f"{part}.{formats.canonical(rest)}":
        raise LikenessError(
            f"The learned tensor {name!r} would not be found again under {key!r}",
            expected="a layer of a Stable Diffusion UNet or CLIP text encoder",
        )


def _check_finite(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    bad = sorted(key for key, tensor in tensors.items() if not torch.isfinite(tensor.float()).all())
    if bad:
        raise LikenessError(
            f"{path.name} was not written: {bad[0]} holds values that are not finite ({len(bad)} tensors)",
            fix="Lower the learning rate and train again",
        )
    return tensors


# --- metadata ----------------------------------------------------------------------------------------


def _metadata(artifact: Artifact, name: str, *, family: str, base_hash: str) -> dict[str, str]:
    ours = dict(artifact.metadata) | {
        "kind": artifact.kind,
        "trigger": artifact.trigger,
        "class_noun": artifact.class_noun,
        "family": family,
        "base_hash": base_hash,
    }
    # Every likeness.* value is JSON, strings too, so that 4 and "4" stay apart.
    table = {f"likeness.{key}": json.dumps(canonical(value), sort_keys=True) for key, value in ours.items()}
    return table | _modelspec(artifact, name, family) | _kohya(artifact, name, family)


def _modelspec(artifact: Artifact, name: str, family: str) -> dict[str, str]:
    """Stability's model metadata, version 1.0.0 (github.com/Stability-AI/ModelSpec), without a date: the same
    run gives the same bytes."""
    architecture = ARCHITECTURE.get(family, family or "unknown")
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/{ARCHITECTURE_ENDING[artifact.kind]}",
        "modelspec.implementation": "diffusers",
        "modelspec.title": name,
        "modelspec.trigger_phrase": artifact.trigger,
        "modelspec.description": f"{artifact.trigger}: a {artifact.class_noun}, learned with Likeness",
    }


def _kohya(artifact: Artifact, name: str, family: str) -> dict[str, str]:
    """The few of kohya's fields that browsers of LoRA files show."""
    if artifact.kind != "lora":
        return {}
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(artifact.metadata["rank"]),
        "ss_network_alpha": str(artifact.metadata["alpha"]),
        "ss_base_model_version": KOHYA_BASE.get(family, family or "unknown"),
        "ss_v2": str(family == "sd2"),
        "ss_output_name": name,
    }
