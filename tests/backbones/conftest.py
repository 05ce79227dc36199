"""Backbones to test on, opened once, and a writer of single-file checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import checkpoint_maker
import pytest
from likeness.backbones.base import BaseModel
from likeness.backbones.loading import load_backbone
from likeness.backbones.sd import SDBackbone
from likeness.backbones.sdxl import SDXLBackbone
from torch import nn

Writer = Callable[..., Path]


@pytest.fixture(scope="session")
def v_pipeline(tmp_path_factory: pytest.TempPathFactory, make_tiny_pipeline: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny_v"
    return make_tiny_pipeline(folder, prediction_type="v_prediction", seed=1)


@pytest.fixture(scope="session")
def backbone(tiny_pipeline: Path) -> SDBackbone:
    return load_backbone(BaseModel(source=str(tiny_pipeline), device="cpu"))


@pytest.fixture(scope="session")
def v_backbone(v_pipeline: Path) -> SDBackbone:
    return load_backbone(BaseModel(source=str(v_pipeline), device="cpu"))


@pytest.fixture(scope="session")
def sdxl(tiny_sdxl: Path) -> SDXLBackbone:
    model = load_backbone(BaseModel(source=str(tiny_sdxl), device="cpu"))
    assert isinstance(model, SDXLBackbone)
    return model


@pytest.fixture(params=["backbone", "v_backbone"])
def either(request: pytest.FixtureRequest) -> SDBackbone:
    """An epsilon and a v model in turn."""
    found: SDBackbone = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def single_file_models() -> Callable[[str], dict[str, nn.Module]]:
    """The modules of a tiny checkpoint with CLIP's real vocabulary, for "sd1", "sd2" or "sdxl"."""
    return checkpoint_maker.make_models


@pytest.fixture(scope="session")
def write_single_file() -> Writer:
    return checkpoint_maker.write_checkpoint
