"""A NeTI word as a concept: saved, opened, applied, refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from likeness.backbones import open_backbone
from likeness.backbones.base import BaseModel
from likeness.backbones.mapper import LayerTable, SpaceTimeMapper
from likeness.concepts.applying import apply_concepts
from likeness.concepts.concept import Artifact, Concept
from likeness.concepts.loading import load_concept, load_tensors
from likeness.concepts.saving import save_concept, to_lora_model
from likeness.core.errors import LikenessError
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def backbone(tiny_pipeline: Path) -> Any:
    return open_backbone(BaseModel(source=str(tiny_pipeline), dtype="fp32", device="cpu"))


def saved(
    folder: Path, backbone: Any, mapper: Any = None, trigger: str = "<finn>", **changes: str
) -> Concept:
    mapper = mapper or SpaceTimeMapper(
        num_layers=backbone.num_cross_attentions, width=32, target_norm=2.0, num_frequencies=16, hidden=8
    )
    artifact = Artifact(
        kind="neti",
        tensors=mapper.state_dict(),
        trigger=trigger,
        class_noun="fish",
        metadata={"method": "neti"},
    )
    origin = {"family": backbone.family, "base_hash": backbone.content_hash} | changes
    return save_concept(artifact, folder, trigger.strip("<>"), **origin)


def test_it_comes_back_as_it_went(backbone: Any, tmp_path: Path) -> None:
    concept = saved(tmp_path, backbone)
    assert saved(tmp_path / "again", backbone).sha256 == concept.sha256
    assert load_concept(concept.path) == concept
    assert (concept.kind, concept.trigger, concept.class_noun) == ("neti", "<finn>", "fish")
    assert int(load_tensors(concept)["layers"]) == backbone.num_cross_attentions


def test_applied_it_is_a_word_and_leaves_nothing(backbone: Any, tmp_path: Path, caplog: Any) -> None:
    noisy = torch.randn(1, backbone.latent_channels, 8, 8)
    concept = saved(tmp_path, backbone)
    mapper = SpaceTimeMapper(
        num_layers=backbone.num_cross_attentions, width=32, target_norm=2.0, num_frequencies=16, hidden=8
    )
    with torch.no_grad(), apply_concepts(backbone, [(concept, 0.5)]) as knowing:
        got = knowing.predict(noisy, torch.tensor([300]), knowing.encode_prompts(["a <finn>"]))
        text = backbone.encode_prompts(["a <finn>"], mappers={"<finn>": mapper})
        torch.testing.assert_close(got, backbone.predict(noisy, torch.tensor([300]), text))
    assert "no effect on a word" in caplog.text and not backbone.mappers


def test_a_table_is_a_word_too(backbone: Any, tmp_path: Path) -> None:
    concept = saved(tmp_path, backbone, LayerTable(torch.ones(backbone.num_cross_attentions, 32)))
    with apply_concepts(backbone, [(concept, 1.0)]) as knowing:
        assert set(knowing.mappers) == {"<finn>"}


@pytest.mark.parametrize("shape", [{"num_layers": 16, "width": 32}, {"num_layers": 2, "width": 768}])
def test_another_model_s_word_is_refused(backbone: Any, tmp_path: Path, shape: dict[str, int]) -> None:
    mapper = SpaceTimeMapper(**shape, target_norm=1.0, num_frequencies=8, hidden=8)
    with pytest.raises(LikenessError, match="cross-attentions"), apply_concepts(
        backbone, [(saved(tmp_path, backbone, mapper), 1.0)]):  # fmt: skip
        raise AssertionError("it was applied")


def test_two_that_answer_to_one_word(backbone: Any, tmp_path: Path) -> None:
    pair = [(saved(tmp_path / name, backbone), 1.0) for name in "ab"]
    with pytest.raises(LikenessError, match="Two concepts answer"), apply_concepts(backbone, pair):
        raise AssertionError("they were applied")


def test_it_is_no_lora(backbone: Any, tmp_path: Path) -> None:
    with pytest.raises(LikenessError, match="NeTI word"):
        to_lora_model(saved(tmp_path, backbone))


def test_a_damaged_file_is_named(backbone: Any, tmp_path: Path) -> None:
    save_file({"neti.layers": torch.tensor(3)}, tmp_path / "x.safetensors")
    with pytest.raises(LikenessError, match="no NeTI mapper"):
        load_concept(tmp_path / "x.safetensors")
