"""Concepts on disk: the same bytes every time, back as they were, and clear words for what is no concept."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from likeness.concepts.concept import Artifact
from likeness.concepts.loading import load_concept, load_tensors
from likeness.concepts.saving import save_concept, to_lora_model
from likeness.core.errors import LikenessError
from likeness.core.tensorfile import read_metadata, read_tensors
from safetensors.torch import save_file
from torch import Tensor

from .conftest import Draw, make_delta, make_embedding, make_lora
from .test_formats import text_encoder, unet

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
KOHYA = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
PEFT = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
MAKERS = {"lora": make_lora, "delta": make_delta}


@pytest.fixture
def small(draw: Draw) -> dict[str, Tensor]:
    """A few weights with the names of a UNet and a text encoder."""
    return {
        f"{LAYER}.weight": draw(8, 8),
        "unet.mid_block.resnets.0.conv1.weight": draw(8, 6, 3, 3),
        "unet.mid_block.resnets.0.conv1.bias": draw(8),
        "text_encoder.encoder.layers.0.self_attn.q_proj.weight": draw(4, 4),
    }


def _artifact(kind: str, draw: Draw, small: dict[str, Tensor]) -> Artifact:
    return make_embedding(draw) if kind == "embedding" else MAKERS[kind](draw, small)


def _file(folder: Path, tensors: dict[str, Tensor], **metadata: str) -> Path:
    path = folder / "foreign.safetensors"
    save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, path, metadata or None)
    return path


def _pair(rank: int = 2, features: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(rank, features), torch.randn(features, rank)


@pytest.mark.parametrize("kind", ["lora", "delta", "embedding"])
def test_a_concept_comes_back_as_it_was(
    kind: str, tmp_path: Path, draw: Draw, small: dict[str, Tensor]
) -> None:
    artifact = _artifact(kind, draw, small)
    concept = save_concept(artifact, tmp_path, "my fish", family="sd1", base_hash="ab12")
    assert concept == load_concept(tmp_path / "my fish.safetensors")
    assert (concept.kind, concept.trigger, concept.class_noun) == (kind, artifact.trigger, "fish")
    assert (concept.family, concept.base_hash, concept.unmatched) == ("sd1", "ab12", {})
    assert concept.metadata == artifact.metadata
    back = load_tensors(concept)
    assert back.keys() == artifact.tensors.keys()
    assert all(torch.equal(back[name], artifact.tensors[name]) for name in back)


def test_embeddings_have_the_keys_that_others_read(tmp_path: Path, draw: Draw) -> None:
    one = save_concept(make_embedding(draw), tmp_path, "one", family="sd1", base_hash="")
    assert read_tensors(one.path)[0].keys() == {"emb_params"}
    both = replace(make_embedding(draw), tensors={"clip_l": draw(2, 768), "clip_g": draw(2, 1280)})
    saved = save_concept(both, tmp_path, "both", family="sdxl", base_hash="")
    assert read_tensors(saved.path)[0].keys() == {"clip_l", "clip_g"} == load_tensors(saved).keys()


def test_the_metadata_say_what_others_show(tmp_path: Path, draw: Draw, small: dict[str, Tensor]) -> None:
    concept = save_concept(make_lora(draw, small), tmp_path, "fish", family="sd1", base_hash="ab")
    metadata = read_metadata(concept.path)
    expected = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "3",
        "ss_network_alpha": "2.0",
        "ss_base_model_version": "sd_v1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.trigger_phrase": "sks fish",
        "likeness.method": '"dreambooth"',
        "likeness.config": '{"learning_rate": 0.0001}',
    }
    assert expected.items() <= metadata.items()


def write_the_same(folder: Path) -> str:
    """The hash of a file made of everything that could differ between processes."""
    generator = torch.Generator().manual_seed(3)
    layers = [f"unet.up_blocks.{i}.resnets.0.conv1.lora_{side}" for i in range(4) for side in "AB"]
    words = {"a", "b", "c", "d"}  # a set: its order hangs on the hash seed
    artifact = Artifact(
        kind="lora",
        tensors={name: torch.randn(4, 4, generator=generator) for name in layers},
        trigger="sks",
        class_noun="fish",
        metadata={"rank": 4, "alpha": 4.0, "tags": words, "config": {word: word for word in words}},
    )
    return save_concept(artifact, folder, "fish", family="sd1", base_hash="").sha256


def test_the_same_artifact_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    source = inspect.getsource(write_the_same)
    header = "import sys, torch\nfrom pathlib import Path\nfrom likeness.concepts.concept import Artifact\n"
    header += "from likeness.concepts.saving import save_concept\n"
    script = f"{header}{source}print(write_the_same(Path(sys.argv[1])), end='')"
    command = [sys.executable, "-c", script, str(tmp_path / "there")]
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    there = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert there == write_the_same(tmp_path / "here")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    modules=st.lists(st.one_of(unet, text_encoder), min_size=1, max_size=4, unique=True),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 6), st.sampled_from([None, 1, 3])),
    alpha=st.floats(0.125, 64, width=32),
)
def test_round_trip_of_any_layers_and_shapes(
    modules: list[str], shape: tuple[int, int, int, int | None], alpha: float, tmp_path: Path
) -> None:
    rank, out, into, kernel = shape
    tail = () if kernel is None else (kernel, kernel)
    ones = (1,) * len(tail)
    tensors = {f"{m}.lora_A": torch.randn(rank, into, *tail) for m in modules}
    tensors |= {f"{m}.lora_B": torch.randn(out, rank, *ones) for m in modules}
    metadata = {"rank": rank, "alpha": alpha}
    artifact = Artifact(kind="lora", tensors=tensors, trigger="t", class_noun="c", metadata=metadata)
    concept = save_concept(artifact, tmp_path, "any", family="sdxl", base_hash="")
    back = load_tensors(concept)
    assert back.keys() == tensors.keys() and all(torch.equal(back[n], tensors[n]) for n in back)
    assert concept.metadata["alpha"] / concept.metadata["rank"] == pytest.approx(alpha / rank, rel=1e-6)


def test_lora_model_has_the_files_keys(tmp_path: Path, draw: Draw, small: dict[str, Tensor]) -> None:
    concept = save_concept(make_lora(draw, small), tmp_path, "fish", family="sd1", base_hash="")
    file, _ = read_tensors(concept.path)
    model = to_lora_model(concept)
    assert model.keys() == file.keys() and all(torch.equal(model[k], file[k]) for k in file)


def test_lora_model_of_a_foreign_file_has_kohya_keys(tmp_path: Path) -> None:
    down, up = _pair()
    path = _file(tmp_path, {f"{PEFT}.lora_A.weight": down, f"{PEFT}.lora_B.weight": up})
    assert to_lora_model(load_concept(path)).keys() == {
        f"{KOHYA}.lora_down.weight",
        f"{KOHYA}.lora_up.weight",
        f"{KOHYA}.alpha",
    }


def test_an_embedding_is_no_lora_model(tmp_path: Path, draw: Draw) -> None:
    concept = save_concept(make_embedding(draw), tmp_path, "fish", family="sd1", base_hash="")
    with pytest.raises(LikenessError, match="embedding:fish"):
        to_lora_model(concept)


# --- foreign files -------------------------------------------------------------------------------------


def test_without_alpha_a_foreign_lora_has_scale_one(tmp_path: Path) -> None:
    down, up = _pair()
    concept = load_concept(_file(tmp_path, {f"{PEFT}.lora_A.weight": down, f"{PEFT}.lora_B.weight": up}))
    assert (concept.kind, concept.base_hash, concept.trigger) == ("lora", "", "")
    assert concept.metadata == {"rank": 2, "alpha": 2.0}


def test_layers_of_different_scale_have_it_folded_in(tmp_path: Path) -> None:
    (down, up), other = _pair(), "lora_unet_conv_in"
    tensors = {f"{KOHYA}.lora_down.weight": down, f"{KOHYA}.lora_up.weight": up, f"{KOHYA}.alpha": _number(1)}
    tensors |= {f"{other}.lora_down.weight": down[:1], f"{other}.lora_up.weight": up[:, :1]}
    concept = load_concept(_file(tmp_path, tensors))
    back = load_tensors(concept)
    assert concept.metadata["alpha"] == concept.metadata["rank"] == 2
    assert torch.equal(back[f"{LAYER}.lora_B"], 0.5 * up)
    assert torch.equal(back["unet.conv_in.lora_B"], up[:, :1])


def _number(value: float) -> Tensor:
    return torch.tensor(float(value))


def test_diffusers_own_alpha_is_read_from_its_metadata(tmp_path: Path) -> None:
    down, up = _pair()
    tensors = {f"unet.{PEFT[17:]}.lora_A.weight": down, f"unet.{PEFT[17:]}.lora_B.weight": up}
    path = _file(tmp_path, tensors, lora_adapter_metadata=json.dumps({"unet.lora_alpha": 1, "unet.r": 2}))
    assert load_concept(path).metadata["alpha"] == 1


def test_what_is_not_understood_is_listed_with_the_reason(tmp_path: Path) -> None:
    down, up = _pair()
    dora, half, odd = ("lora_unet_conv_in", "lora_unet_conv_out", "lora_unet_mid_block_resnets_0_conv1")
    tensors = {f"{KOHYA}.lora_down.weight": down, f"{KOHYA}.lora_up.weight": up}
    tensors |= {f"{dora}.lora_down.weight": down, f"{dora}.lora_up.weight": up}
    tensors |= {f"{dora}.dora_scale": _number(1), f"{half}.lora_up.weight": up}
    tensors |= {f"{odd}.lora_down.weight": down, f"{odd}.lora_up.weight": up.T}
    tensors |= {"lora_unet_conv_norm_out.alpha": _number(1), "lora_unet_nowhere.lora_up.weight": up}
    concept = load_concept(_file(tmp_path, tensors))
    assert load_tensors(concept).keys() == {f"{LAYER}.lora_A", f"{LAYER}.lora_B"}
    assert concept.unmatched.keys() == tensors.keys() - {
        f"{KOHYA}.lora_down.weight",
        f"{KOHYA}.lora_up.weight",
    }
    reasons = concept.unmatched
    assert reasons[f"{dora}.lora_up.weight"] == "dora_scale belongs to a method that is not read here"
    assert reasons[f"{half}.lora_up.weight"] == "the other half of the pair is missing"
    assert reasons[f"{odd}.lora_up.weight"].startswith("the pair does not fit together: (2, 8) x (2, 8)")
    assert reasons["lora_unet_conv_norm_out.alpha"] == "it has no weights"
    assert reasons["lora_unet_nowhere.lora_up.weight"] == "no layer of Stable Diffusion has this name"


EMBEDDINGS: dict[str, tuple[dict[str, Tensor], str, str]] = {
    "diffusers": ({"<cat-toy>": torch.ones(768)}, "<cat-toy>", "sd1"),
    "kohya": ({"emb_params": torch.ones(4, 1024)}, "<foreign>", "sd2"),
    "sdxl": ({"clip_l": torch.ones(4, 768), "clip_g": torch.ones(4, 1280)}, "<foreign>", "sdxl"),
}


@pytest.mark.parametrize("form", EMBEDDINGS)
def test_public_embeddings_open(form: str, tmp_path: Path) -> None:
    tensors, trigger, family = EMBEDDINGS[form]
    concept = load_concept(_file(tmp_path, tensors))
    assert (concept.kind, concept.trigger, concept.family) == ("embedding", trigger, family)
    assert all(rows.ndim == 2 for rows in load_tensors(concept).values())


def test_an_embedding_answers_to_its_file_name_as_one_word(tmp_path: Path) -> None:
    path = _file(tmp_path, {"emb_params": torch.ones(1, 8)}).rename(tmp_path / "my fish v2.safetensors")
    assert load_concept(path).trigger == "<my_fish_v2>"


@pytest.mark.parametrize(("width", "family"), [(768, "sd1"), (1024, "sd2"), (2048, "sdxl"), (32, "")])
def test_the_family_of_a_foreign_lora_shows_in_its_width(width: int, family: str, tmp_path: Path) -> None:
    key = KOHYA.replace("attn1_to_q", "attn2_to_k")
    tensors = {f"{key}.lora_down.weight": torch.ones(2, width), f"{key}.lora_up.weight": torch.ones(8, 2)}
    assert load_concept(_file(tmp_path, tensors)).family == family


OTHERS = {
    "Flux": "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight",
    "Stable Diffusion 3": "lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight",
    "a diffusion transformer": "lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight",
    "holds nothing learned": "model.diffusion_model.out.2.weight",
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_file_for_another_model_is_refused_by_name(what: str, tmp_path: Path) -> None:
    with pytest.raises(LikenessError, match=what) as error:
        load_concept(_file(tmp_path, {OTHERS[what]: torch.ones(2, 8), "another": torch.ones(2)}))
    assert "foreign.safetensors" in str(error.value)


# --- bad input -----------------------------------------------------------------------------------------


class _Canary:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("canary-was-executed"),))


def test_pickles_are_refused_and_never_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickled = tmp_path / "evil.safetensors"
    pickled.write_bytes(pickle.dumps(_Canary()))
    zipped = tmp_path / "evil.pt"
    torch.save({"x": torch.ones(1)}, zipped)
    for path in (pickled, zipped):
        with pytest.raises(LikenessError, match="pickle"):
            load_concept(path)
    assert not (tmp_path / "canary-was-executed").exists()


def test_truncated_files_are_refused(tmp_path: Path, draw: Draw, small: dict[str, Tensor]) -> None:
    concept = save_concept(make_lora(draw, small), tmp_path, "fish", family="sd1", base_hash="")
    whole = concept.path.read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        concept.path.write_bytes(whole[:length])
        with pytest.raises(LikenessError, match=r"fish\.safetensors"):
            load_concept(concept.path)


def test_a_file_that_changed_is_not_read_as_the_old_concept(tmp_path: Path, draw: Draw) -> None:
    concept = save_concept(make_embedding(draw), tmp_path, "fish", family="sd1", base_hash="")
    save_concept(make_embedding(draw, vectors=2), tmp_path, "fish", family="sd1", base_hash="")
    with pytest.raises(LikenessError, match="changed"):
        load_tensors(concept)


@pytest.mark.parametrize(
    "name", ["", "../out", "a/b", "nul", "x\0y", "con.txt", "a" * 300, "\ud800", ".", "<x>"]
)
def test_hostile_names_write_nothing(name: str, tmp_path: Path, draw: Draw) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    with pytest.raises(LikenessError):
        save_concept(make_embedding(draw), folder, name, family="sd1", base_hash="")
    assert [*tmp_path.rglob("*")] == [folder]


@pytest.mark.parametrize("trigger", ["<\ud800>", "\x00", "a\nb", "</script>", "\u202efish", "x" * 10_000])
def test_hostile_words_come_back_or_are_refused(trigger: str, tmp_path: Path, draw: Draw) -> None:
    artifact = replace(make_embedding(draw), trigger=trigger)
    try:
        concept = save_concept(artifact, tmp_path, "fish", family="sd1", base_hash="")
    except LikenessError:
        assert [*tmp_path.iterdir()] == []
    else:
        assert concept.trigger == trigger


HOSTILE = {
    "not JSON": {"likeness.trigger": "{"},
    "deep": {"likeness.config": "[" * 100_000},
    "wrong types": {"likeness.trigger": "[1]", "likeness.base_hash": "7", "likeness.rank": '"many"'},
    "lies": {"likeness.kind": '"embedding"', "likeness.rank": "1e9", "likeness.alpha": "NaN"},
    "foreign": {"lora_adapter_metadata": "[" * 100_000, "ss_base_model_version": "\u2603"},
    "foreign types": {"lora_adapter_metadata": '{"unet.lora_alpha": "x"}'},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_metadata_mislead_nobody(what: str, tmp_path: Path) -> None:
    down, up = _pair()
    path = _file(tmp_path, {f"{PEFT}.lora_A.weight": down, f"{PEFT}.lora_B.weight": up}, **HOSTILE[what])
    try:
        concept = load_concept(path)
    except LikenessError as error:
        assert "foreign.safetensors" in str(error)
    else:
        assert (concept.kind, concept.trigger, concept.family, concept.base_hash) == ("lora", "", "", "")
        assert (concept.metadata["rank"], concept.metadata["alpha"]) == (2, 2.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"tensors": {f"{LAYER}.lora_A": torch.full((2, 8), np.nan), f"{LAYER}.lora_B": torch.ones(8, 2)}},
        {"metadata": {"rank": 2}},
        {"metadata": {"rank": 0, "alpha": 1.0}},
        {"metadata": {"rank": "x", "alpha": 1.0}},
        {"tensors": {"unet.my_layer.lora_A": torch.ones(2, 8)}},
        {"tensors": {"unet.mid_block.odd_name.lora_A": torch.ones(2, 8)}},
        {"tensors": {"unet.mid_block.weight.gamma": torch.ones(2)}},
    ],
)
def test_what_cannot_be_saved_is_refused_and_nothing_written(changes: dict[str, Any], tmp_path: Path) -> None:
    tensors = {f"{LAYER}.lora_A": torch.ones(2, 8), f"{LAYER}.lora_B": torch.ones(8, 2)}
    metadata = {"rank": 2, "alpha": 2.0}
    artifact = Artifact(kind="lora", tensors=tensors, trigger="t", class_noun="c", metadata=metadata)
    with pytest.raises(LikenessError):
        save_concept(replace(artifact, **changes), tmp_path / "out", "x", family="sd1", base_hash="")
    assert not (tmp_path / "out").exists()


def test_values_that_are_not_finite_are_refused_on_opening(tmp_path: Path) -> None:
    with pytest.raises(LikenessError, match="not finite"):
        load_concept(_file(tmp_path, {"emb_params": torch.tensor([[1.0, float("inf")]])}))
