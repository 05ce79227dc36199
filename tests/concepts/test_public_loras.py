"""LoRA files as other tools write them: opened whole, at the strength that their makers meant."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from likeness.backbones import open_backbone
from likeness.backbones.base import Backbone, BaseModel
from likeness.concepts.applying import apply_concepts
from likeness.concepts.concept import Artifact
from likeness.concepts.loading import load_concept
from likeness.concepts.saving import save_concept
from likeness.core.errors import LikenessError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .conftest import Draw, dense, make_lora

RANK, ALPHA = 3, 6.0
SCALE = ALPHA / RANK
T = torch.tensor([500])


@pytest.fixture(scope="module")
def backbone(tiny_pipeline: Path) -> Backbone:
    return open_backbone(BaseModel(source=str(tiny_pipeline), dtype="fp32", device="cpu"))


def predicted(backbone: Backbone, noisy: Tensor, path: Path | None = None) -> Tensor:
    """Our noise prediction with a file at work."""
    concepts = [(load_concept(path), 1.0)] if path else []
    with torch.no_grad(), apply_concepts(backbone, concepts) as model:
        return model.predict(noisy, T, model.encode_prompts(["a photo of a fish"]))


# --- written by the libraries themselves --------------------------------------------------------------


def peft_config(**more: Any) -> Any:
    from peft import LoraConfig

    leaves = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "time_emb_proj"]
    settings = {"r": RANK, "lora_alpha": ALPHA, "target_modules": leaves, "init_lora_weights": False}
    return LoraConfig(**{**settings, **more})


def unet_of(tiny_pipeline: Path) -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(3)
    return UNet2DConditionModel.from_pretrained(tiny_pipeline / "unet", local_files_only=True)


def by_peft(tiny_pipeline: Path, folder: Path, **more: Any) -> tuple[Any, Path]:
    from peft import get_peft_model

    model = get_peft_model(unet_of(tiny_pipeline), peft_config(**more))
    model.save_pretrained(folder)
    return model, folder / "adapter_model.safetensors"


def by_diffusers(tiny_pipeline: Path, folder: Path) -> tuple[Any, Path]:
    from diffusers import StableDiffusionPipeline
    from peft.utils import get_peft_model_state_dict

    unet = unet_of(tiny_pipeline)
    unet.add_adapter(peft_config())
    settings = json.loads(json.dumps(unet.peft_config["default"].to_dict(), default=list))  # sets are no JSON
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(unet),
        unet_lora_adapter_metadata=settings,
    )
    return unet, folder / "pytorch_lora_weights.safetensors"


LIBRARIES: dict[str, Callable[[Path, Path], tuple[Any, Path]]] = {
    "PEFT": by_peft,
    "PEFT, rsLoRA": lambda tiny, folder: by_peft(tiny, folder, use_rslora=True),
    "PEFT, an alpha of one layer's own": lambda tiny, folder: by_peft(
        tiny, folder, alpha_pattern={"attn2.to_k": 1.5}
    ),
    "diffusers": by_diffusers,
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_librarys_file_does_what_it_does_there(
    library: str, tiny_pipeline: Path, tmp_path: Path, backbone: Backbone, draw: Draw
) -> None:
    unet, path = LIBRARIES[library](tiny_pipeline, tmp_path)
    noisy = draw(1, 4, 8, 8)
    context = backbone.encode_prompts(["a photo of a fish"]).context
    with torch.no_grad():
        theirs = unet(noisy, T, context).sample
    assert load_concept(path).unmatched == {}
    torch.testing.assert_close(predicted(backbone, noisy, path), theirs, rtol=0, atol=1e-5)
    assert (theirs - predicted(backbone, noisy)).abs().max() > 1e-2


def test_damaged_settings_of_peft_are_named(tiny_pipeline: Path, tmp_path: Path) -> None:
    path = by_peft(tiny_pipeline, tmp_path)[1]
    for text in ("{", "[]", '{"lora_alpha": "much"}', '{"lora_alpha": 1, "alpha_pattern": 3}'):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(LikenessError, match=r"adapter_config\.json"):
            load_concept(path)


# --- key forms of older tools -------------------------------------------------------------------------

ROLES = {"lora_A": "down", "lora_B": "up"}


def kohya(name: str, role: str) -> str:
    part, _, module = name.partition(".")
    prefix = "lora_unet_" if part == "unet" else "lora_te_text_model_"
    return f"{prefix}{module.replace('.', '_')}.lora_{ROLES[role]}.weight"


def one_trainer(name: str, role: str) -> str:
    """As kohya; its text encoder is numbered whatever the model."""
    return kohya(name, role).replace("lora_te_", "lora_te1_")


def processors(name: str, role: str) -> str:
    """diffusers to 0.17: on the attention processors."""
    head, _, leaf = name.removesuffix(".0").rpartition(".")
    return f"{head}.processor.{leaf}_lora.{ROLES[role]}.weight"


def linear_layers(name: str, role: str) -> str:
    """diffusers 0.18 to 0.21."""
    return f"{name}.lora_linear_layer.{ROLES[role]}.weight"


def dotted(name: str, role: str) -> str:
    """diffusers since 0.22."""
    return f"{name}.lora.{ROLES[role]}.weight"


FORMS = {  # the key, and whether the tool stores alpha
    "kohya": (kohya, True),
    "OneTrainer": (one_trainer, True),
    "diffusers 0.17": (processors, False),
    "diffusers 0.18": (linear_layers, False),
    "diffusers 0.22": (dotted, False),
}


def write_form(path: Path, form: str, artifact: Artifact) -> Path:
    key_of, stores_alpha = FORMS[form]
    file: dict[str, Tensor] = {}
    for tensor_name, tensor in artifact.tensors.items():
        name, _, role = tensor_name.rpartition(".")
        key = key_of(name, role)
        file[key] = tensor.contiguous()
        if stores_alpha and role == "lora_A":
            file[key.removesuffix(".lora_down.weight") + ".alpha"] = torch.tensor(ALPHA)
    save_file(file, path)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_every_layer_of_a_public_form_is_used(
    form: str, tmp_path: Path, backbone: Backbone, draw: Draw, tiny_weights: Mapping[str, Tensor]
) -> None:
    whole = FORMS[form][1]  # the older forms of diffusers know attention layers of the UNet alone
    weights = {n: w for n, w in tiny_weights.items() if whole or (n.startswith("unet.") and ".attn" in n)}
    artifact = make_lora(draw, weights, rank=RANK, alpha=ALPHA, conv=whole)
    path = write_form(tmp_path / "public.safetensors", form, artifact)
    noisy = draw(1, 4, 8, 8)
    assert load_concept(path).unmatched == {}
    with torch.no_grad(), backbone.patched(dense(dict(artifact.tensors), SCALE if whole else 1.0)) as model:
        expected = model.predict(noisy, T, model.encode_prompts(["a photo of a fish"]))
    torch.testing.assert_close(predicted(backbone, noisy, path), expected, rtol=0, atol=1e-5)
    assert (expected - predicted(backbone, noisy)).abs().max() > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_what_no_layer_takes_is_listed_and_the_rest_works(
    form: str, tmp_path: Path, draw: Draw, tiny_weights: dict[str, Tensor]
) -> None:
    artifact = make_lora(draw, {n: w for n, w in tiny_weights.items() if ".attn2.to_k" in n}, rank=RANK)
    path = write_form(tmp_path / "public.safetensors", form, artifact)
    odd = {"some_other_model.lora_down.weight": torch.ones(1, 2), "notes": torch.ones(3)}
    save_file(load_file(path) | odd, path)
    concept = load_concept(path)
    assert concept.unmatched.keys() == odd.keys()
    assert all(concept.unmatched.values())
    again = save_concept(artifact, tmp_path, "ours", family="sd1", base_hash="")
    assert load_concept(again.path).unmatched == {}
