"""The mapper itself: norms, nested dropout, initial weights, files."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.backbones.mapper import LayerTable, SpaceTimeMapper, mapper_from_tensors
from likeness.core.errors import LikenessError

T_B = torch.tensor([0, 13, 999])


def mapper(**changes):
    return SpaceTimeMapper(**{"num_layers": 4, "width": 12, "target_norm": 0.7, "hidden": 16, **changes})


@settings(max_examples=20)
@given(st.integers(0, 999), st.booleans())
def test_the_whole_output_has_the_noun_s_norm(t, bypass):
    rows = mapper(bypass=bypass)(torch.tensor([t]))
    whole = [rows.rows_SBD, rows.bypass_SBD] if bypass else [rows.rows_SBD]
    norms = torch.cat(whole, dim=-1).norm(dim=-1)
    torch.testing.assert_close(norms, torch.full((4, 1), 0.7))


def test_an_encoding_has_length_one_and_anchors_are_the_first_weights():
    built = mapper()
    encoded = built.encode(torch.tensor([300, 5]), torch.tensor([2, 0]))
    torch.testing.assert_close(encoded.norm(dim=1), torch.ones(2))
    # Anchors are listed time after time: t = 300 is the fourth of them, l = 2 its third.
    torch.testing.assert_close(built.input_layer.weight[3 * 4 + 2].detach(), encoded[0])


def test_stable_diffusion_s_mapper_has_the_released_sizes():
    built = mapper(num_layers=16, width=768, hidden=128)
    sizes = {name: tuple(p.shape) for name, p in built.named_parameters()}
    assert sizes["input_layer.weight"] == (160, 2048) and sizes["output_layer.weight"] == (1536, 128)
    assert sum(p.numel() for p in built.parameters()) == pytest.approx(563_000, rel=0.01)


def test_nested_dropout_keeps_the_first_units():
    built = mapper()
    keep_SB = torch.full((4, 3), 16)
    whole = built(T_B).rows_SBD
    assert torch.equal(built(T_B, keep_SB).rows_SBD, whole)
    keep_SB[1, 2] = 0
    cut = built(T_B, keep_SB).rows_SBD
    bias = built.output_layer.bias
    torch.testing.assert_close(cut[1, 2], 0.7 * (bias / bias.norm())[:12])
    keep_SB[1, 2] = 16
    assert torch.equal(torch.cat([cut[:1], cut[2:]]), torch.cat([whole[:1], whole[2:]]))


def test_the_same_seed_gives_the_same_weights_and_leaves_the_host_s_randomness():
    state = torch.get_rng_state()
    first, again, other = mapper(seed=3), mapper(seed=3), mapper(seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in first.state_dict().items())
    assert not torch.equal(first.encoder.w, other.encoder.w)


@pytest.mark.parametrize("built", [mapper(), mapper(bypass=False, num_frequencies=8),
                                   LayerTable(torch.randn(4, 12))])  # fmt: skip
def test_tensors_are_all_that_a_mapper_is(built):
    with torch.inference_mode():
        again = mapper_from_tensors(built.state_dict())
    assert (again.num_layers, again.width) == (4, 12)
    assert not any(p.requires_grad or p.is_inference() for p in again.parameters())
    before, after = built(T_B), again(T_B)
    assert torch.equal(before.rows_SBD, after.rows_SBD)
    assert (before.bypass_SBD is None) == (after.bypass_SBD is None)


@pytest.mark.parametrize("broken", ["encoder.w", "layers", "net.0.weight", "output_layer.weight"])
def test_tensors_that_are_no_mapper(broken):
    tensors = mapper().state_dict()
    del tensors[broken]
    with pytest.raises(LikenessError, match="no NeTI mapper"):
        mapper_from_tensors(tensors)
