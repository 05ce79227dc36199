"""SVD extraction: exact where the change has that rank, with the error it says, and nothing of it hidden."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from likeness.concepts.concept import Artifact
from likeness.concepts.extract import extract_lora
from likeness.core.errors import LikenessError
from torch import Tensor

from .conftest import Draw, dense

LINEAR = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "unet.mid_block.resnets.0.conv1"


def _delta(tensors: dict[str, Tensor]) -> Artifact:
    return Artifact(
        kind="delta", tensors=tensors, trigger="sks", class_noun="fish", metadata={"method": "dreambooth"}
    )


def _rebuilt(lora: Artifact) -> dict[str, Tensor]:
    return dense(dict(lora.tensors), lora.metadata["alpha"] / lora.metadata["rank"])


def test_a_change_of_low_rank_is_found_exactly(draw: Draw) -> None:
    change = {f"{LINEAR}.weight": draw(9, 2) @ draw(2, 7), f"{CONV}.weight": draw(6, 2) @ draw(2, 36)}
    change[f"{CONV}.weight"] = change[f"{CONV}.weight"].reshape(6, 4, 3, 3)
    lora = extract_lora(_delta(change), rank=2)
    assert lora.tensors[f"{CONV}.lora_A"].shape == (2, 4, 3, 3)
    assert lora.tensors[f"{CONV}.lora_B"].shape == (6, 2, 1, 1)
    for name, tensor in _rebuilt(lora).items():
        torch.testing.assert_close(tensor, change[name], rtol=0, atol=1e-5)
    assert lora.metadata["extraction"]["total_error"] < 1e-6


def test_the_stated_errors_are_the_real_ones(draw: Draw) -> None:
    change = {f"{LINEAR}.weight": draw(9, 7), f"{CONV}.weight": draw(6, 4, 3, 3), f"{CONV}.bias": draw(6)}
    lora = extract_lora(_delta(change), rank=3)
    report, rebuilt = lora.metadata["extraction"], _rebuilt(lora)
    lost = {name: float((rebuilt[name] - change[name]).square().sum()) for name in change}
    for module in (LINEAR, CONV):
        name = f"{module}.weight"
        assert report["layer_errors"][module] == pytest.approx(
            math.sqrt(lost[name]) / float(change[name].norm()), rel=1e-4
        )
    total = sum(float(tensor.square().sum()) for tensor in change.values())
    assert report["total_error"] == pytest.approx(math.sqrt(sum(lost.values()) / total), rel=1e-4)


def test_by_hand() -> None:
    change = torch.diag(torch.tensor([4.0, 2.0, 1.0]))
    lora = extract_lora(_delta({f"{LINEAR}.weight": change}), rank=1)
    assert lora.metadata["extraction"]["layer_errors"][LINEAR] == pytest.approx(math.sqrt(5 / 21))
    up, down = lora.tensors[f"{LINEAR}.lora_B"], lora.tensors[f"{LINEAR}.lora_A"]
    torch.testing.assert_close(up @ down, torch.diag(torch.tensor([4.0, 0.0, 0.0])))


@pytest.mark.parametrize(("energy", "rank"), [(0.5, 1), (16 / 21, 1), (0.8, 2), (0.96, 3), (1.0, 3)])
def test_energy_keeps_as_few_as_hold_it(energy: float, rank: int) -> None:
    change = torch.diag(torch.tensor([4.0, 2.0, 1.0]))  # of squared norm 16 + 4 + 1
    lora = extract_lora(_delta({f"{LINEAR}.weight": change}), energy=energy)
    assert lora.metadata["rank"] == lora.tensors[f"{LINEAR}.lora_A"].shape[0] == rank


def test_layers_may_differ_in_rank_and_keep_their_size(draw: Draw) -> None:
    change = {f"{LINEAR}.weight": draw(8, 1) @ draw(1, 8), f"{CONV}.weight": draw(8, 8)}
    lora = extract_lora(_delta(change), energy=1 - 1e-9)
    assert lora.tensors[f"{LINEAR}.lora_A"].shape[0] == 1
    for name, tensor in _rebuilt(lora).items():
        torch.testing.assert_close(tensor, change[name], rtol=0, atol=1e-4)


def test_what_has_no_rank_is_kept_whole_and_what_did_not_change_is_left_out(draw: Draw) -> None:
    table = "text_encoder.embeddings.token_embedding.weight"
    change = {f"{CONV}.bias": draw(6), table: draw(9, 4), f"{CONV}.weight": torch.zeros(6, 4, 3, 3)}
    lora = extract_lora(_delta(change), rank=2)
    assert lora.tensors.keys() == {f"{CONV}.bias", table}
    assert torch.equal(lora.tensors[table], change[table])


@pytest.mark.parametrize(
    "asked", [{}, {"rank": 2, "energy": 0.5}, {"rank": 0}, {"energy": 0.0}, {"energy": 1.5}]
)
def test_unclear_wishes_are_refused(asked: dict[str, float], draw: Draw) -> None:
    with pytest.raises(LikenessError, match="either a rank"):
        extract_lora(_delta({f"{LINEAR}.weight": draw(4, 4)}), **asked)  # type: ignore[arg-type]


def test_only_deltas_are_extracted(draw: Draw) -> None:
    with pytest.raises(LikenessError, match="no weight differences"):
        extract_lora(replace(_delta({}), kind="lora"), rank=2)
