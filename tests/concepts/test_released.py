"""Released mapper files: read as data, the same numbers, and nothing in a hostile one ever runs."""

from __future__ import annotations

import pickle
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from likeness.backbones.mapper import SpaceTimeMapper, mapper_from_tensors
from likeness.concepts.loading import load_concept, load_tensors
from likeness.concepts.released import read_released
from likeness.concepts.saving import save_concept
from likeness.core.errors import LikenessError
from torch import nn

WIDTH, HIDDEN, NUM_W = 8, 128, 16


def write_released(path: Path, ours: SpaceTimeMapper) -> None:
    """As NeTI's code saves it: a state dict, a plain configuration, and the encoding as a whole object."""
    parent, module = types.ModuleType("models"), types.ModuleType("models.positional_encoding")

    class NeTIPositionalEncoding(nn.Module):
        pass

    NeTIPositionalEncoding.__module__ = module.__name__
    NeTIPositionalEncoding.__qualname__ = "NeTIPositionalEncoding"
    module.NeTIPositionalEncoding = NeTIPositionalEncoding  # type: ignore[attr-defined]
    parent.positional_encoding = module  # type: ignore[attr-defined]
    sys.modules |= {"models": parent, module.__name__: module}
    encoder = NeTIPositionalEncoding()
    encoder.sigma_t, encoder.num_w = 0.03, NUM_W
    encoder.w = ours.encoder.w.clone()
    theirs = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    state = {f"input_layer.{k}": theirs[f"input_layer.{k}"] for k in ("weight", "bias")}
    state |= {f"net.0.{k}": theirs[f"input_layer.{k}"] for k in ("weight", "bias")}
    for name in [n for n in theirs if n.startswith("net.")]:
        number, _, leaf = name.removeprefix("net.").partition(".")
        state[f"net.{int(number) + 1}.{leaf}"] = theirs[name]
    state |= {f"output_layer.0.{k}": theirs[f"output_layer.{k}"] for k in ("weight", "bias")}
    config = {
        "model": {"target_norm": 0.39, "output_bypass": True, "pe_sigmas": {"sigma_t": 0.03, "sigma_l": 2.0}},
        "data": {"placeholder_token": "<finn>", "super_category_token": "fish"},
        "optim": {"learning_rate": 0.001, "seed": None, "betas": (0.9, 0.999), "on": True},
    }
    try:
        torch.save({"state_dict": state, "cfg": config, "encoder": encoder}, path)
    finally:
        del sys.modules["models"], sys.modules[module.__name__]


@pytest.fixture
def released(tmp_path: Path) -> tuple[Path, SpaceTimeMapper]:
    ours = SpaceTimeMapper(num_layers=16, width=WIDTH, target_norm=0.39, num_frequencies=NUM_W, hidden=HIDDEN)
    write_released(tmp_path / "mapper-steps-500.pt", ours)
    return tmp_path / "mapper-steps-500.pt", ours


def test_a_released_mapper_is_the_same_mapper(released: Any, tmp_path: Path) -> None:
    path, ours = released
    artifact = read_released(path, allow_pickle_format=True)
    concept = save_concept(artifact, tmp_path, "finn", family="sd1", base_hash="")
    loaded = load_concept(concept.path)
    assert (loaded.kind, loaded.trigger, loaded.class_noun, loaded.family) == (
        "neti",
        "<finn>",
        "fish",
        "sd1",
    )
    again, t_B = mapper_from_tensors(load_tensors(loaded)), torch.tensor([0, 500])
    assert torch.equal(again(t_B).rows_SBD, ours(t_B).rows_SBD)
    assert torch.equal(again(t_B).bypass_SBD, ours(t_B).bypass_SBD)


def test_it_must_be_asked_for(released: Any) -> None:
    with pytest.raises(LikenessError, match="can carry programs"):
        read_released(released[0], allow_pickle_format=False)


class Canary:
    """Would write a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "it ran")


def test_a_program_in_the_file_never_runs(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for content in ({"state_dict": Canary(canary), "cfg": {}, "encoder": 0}, Canary(canary)):
        bad = tmp_path / "bad.pt"
        torch.save(content, bad)
        with pytest.raises(LikenessError, match=r"bad\.pt"):
            read_released(bad, allow_pickle_format=True)
        assert not canary.exists()
    torch.load(bad, weights_only=False)  # the canary is a live one
    assert canary.exists()


def rewritten(path: Path, change: Any) -> Path:
    """The archive with its members passed through ``change``."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, change(name, data))
    return path


BROKEN = {
    "cut": lambda name, data: data[:40] if name.endswith("data.pkl") else data,
    "short storage": lambda name, data: data[:4] if "/data/" in name else data,
    "not finite": lambda name, data: b"\xff" * len(data) if "/data/" in name else data,
    "no pickle": lambda name, data: b"hello" if name.endswith("data.pkl") else data,
    "a list": lambda name, data: pickle.dumps([1, 2]) if name.endswith("data.pkl") else data,
    "of itself": lambda name, data: b"\x80\x02]q\x00h\x00a." if name.endswith("data.pkl") else data,
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_damaged_file_is_one_clear_error(released: Any, how: str) -> None:
    with pytest.raises(LikenessError, match=r"mapper-steps-500\.pt"):
        read_released(rewritten(released[0], BROKEN[how]), allow_pickle_format=True)


def test_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"hello")
    with pytest.raises(LikenessError, match=r"x\.pt"):
        read_released(tmp_path / "x.pt", allow_pickle_format=True)
