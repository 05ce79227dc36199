"""The segmentation models' own classes, small and with random weights: shapes, boxes, files."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from likeness.benchmarks import segmenter_shapes as shapes
from likeness.core.errors import LikenessError
from likeness.subjects.segmenting import Box, Point
from likeness.subjects.segmenting.isnet import ISNet
from likeness.subjects.segmenting.saliency import Saliency
from likeness.subjects.segmenting.sam2 import Sam2Package


@pytest.mark.parametrize("name", shapes.CHECKS)
def test_the_model_runs_end_to_end(name: str) -> None:
    build, check = shapes.CHECKS[name]
    torch.manual_seed(0)
    assert check(build(tiny=True))


def test_isnet_has_the_published_checkpoints_names_and_shapes() -> None:
    """As in the paper: 112 convolutions in eleven stages, the first one, six side outputs."""
    with torch.device("meta"):
        state = ISNet().state_dict()
    assert sum(name.endswith("conv_s1.weight") for name in state) == 112
    assert sum(t.ndim == 4 for t in state.values()) == 112 + 1 + 6
    assert state["stage1.rebnconv7.conv_s1.weight"].shape == (32, 32, 3, 3)
    assert state["stage5d.rebnconvin.conv_s1.weight"].shape == (512, 1024, 3, 3)
    assert state["stage1d.rebnconv1d.bn_s1.weight"].shape == (64,)
    assert state["side6.weight"].shape == (1, 512, 3, 3)


def test_a_file_that_is_not_isnet_or_holds_code_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "isnet"
    folder.mkdir()
    torch.save({"a": torch.zeros(1)}, folder / "isnet.pth")
    with pytest.raises(LikenessError, match="IS-Net"):
        Saliency.open([tmp_path], "cpu")
    torch.save({"a": Path}, folder / "isnet.pth")  # a pickled class
    with pytest.raises(LikenessError, match="tensors and nothing else"):
        Saliency.open([tmp_path], "cpu")


def test_the_sam2_package_is_asked_in_its_own_terms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Predictor:
        def __init__(self, model: Any) -> None:
            asked.append(model)

        def set_image(self, pixels: np.ndarray) -> None:
            asked.append(pixels.shape)

        def predict(self, **prompt: Any) -> tuple[np.ndarray, np.ndarray, None]:
            asked.append(prompt)
            mask = np.zeros((1, 200, 300), np.float32)
            mask[0, 40:160, 60:180] = 1
            return mask, np.array([0.9]), None

    def build(config: str, checkpoint: str, device: str) -> str:
        return f"{config} {Path(checkpoint).name} {device}"

    modules = {
        "sam2": types.ModuleType("sam2"),
        "sam2.build_sam": types.SimpleNamespace(build_sam2=build),
        "sam2.sam2_image_predictor": types.SimpleNamespace(SAM2ImagePredictor=Predictor),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]
    opened = Sam2Package.open(tmp_path / "sam2.1_hiera_small.pt", "cpu")
    cut = opened.cut(shapes.photo(), [Box(x0=60, y0=40, x1=180, y1=160)], [Point(100, 90)])
    assert asked[:2] == ["configs/sam2.1/sam2.1_hiera_s.yaml sam2.1_hiera_small.pt cpu", (200, 300, 3)]
    assert asked[2]["box"].tolist() == [60, 40, 180, 160] and asked[2]["point_labels"].tolist() == [1]
    assert cut.mask_HW.sum() == 120 * 120 and cut.confidence == pytest.approx(0.9)
    with pytest.raises(LikenessError, match="sam2_hiera_tiny"):
        Sam2Package.open(tmp_path / "my.pt", "cpu")
