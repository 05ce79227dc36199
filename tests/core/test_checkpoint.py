import logging
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.core.checkpoint import (
    checkpoint_path,
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from likeness.core.errors import LikenessError, NonFiniteLoss
from likeness.core.tensorfile import write_tensors


def save(folder, *steps):
    for step in steps:
        save_checkpoint(checkpoint_path(folder, step), {"w": torch.full((3,), float(step))}, {"step": step})


def test_a_checkpoint_comes_back(tmp_path):
    tensors = {"w": torch.randn(3, 4).t(), "step": torch.tensor(7), "m": torch.randn(5).bfloat16()}
    path = checkpoint_path(tmp_path, 7)
    save_checkpoint(
        path, tensors, {"step": 7, "lr": 0.1, "log": [1e-300, 1 / 3], "best": None, "name": "\u00e9"}
    )
    again, state = load_checkpoint(newest_checkpoint(tmp_path))
    assert state == {"step": 7, "lr": 0.1, "log": [1e-300, 1 / 3], "best": None, "name": "\u00e9"}
    assert set(again) == set(tensors) and all(torch.equal(again[k], v) for k, v in tensors.items())
    assert list(tmp_path.iterdir()) == [path]


@settings(max_examples=25)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False)))
def test_floats_of_the_state_come_back_bit_for_bit(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "floats.safetensors"
    save_checkpoint(path, {}, {"values": values})
    assert [v.hex() for v in load_checkpoint(path)[1]["values"]] == [v.hex() for v in values]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_reaches_the_disk(tmp_path, value):
    path = checkpoint_path(tmp_path, 1)
    with pytest.raises(NonFiniteLoss, match="exp_avg"):
        save_checkpoint(path, {"w": torch.ones(2), "exp_avg": torch.tensor([1.0, value])}, {})
    with pytest.raises(NonFiniteLoss, match="state"):
        save_checkpoint(path, {}, {"loss": [1.0, value]})
    assert list(tmp_path.iterdir()) == []


def test_newest_goes_by_number(tmp_path):
    save(tmp_path, 100, 20, 3)
    assert newest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 100)


def test_damaged_ones_are_passed_over_and_named(tmp_path, caplog):
    save(tmp_path, 1, 2, 3)
    checkpoint_path(tmp_path, 3).write_bytes(b"")
    checkpoint_path(tmp_path, 2).write_bytes(checkpoint_path(tmp_path, 2).read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 1)
    assert "step_00000003" in caplog.text and "step_00000002" in caplog.text


def test_no_checkpoint(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "missing") is None


def test_another_safetensors_file_is_no_checkpoint(tmp_path):
    path = checkpoint_path(tmp_path, 1)
    write_tensors(path, {"w": torch.ones(1)}, {"format": "pt"})
    with pytest.raises(LikenessError, match="no checkpoint"):
        load_checkpoint(path)
    assert newest_checkpoint(tmp_path) is None


def test_pruning_keeps_the_newest_and_the_protected(tmp_path):
    save(tmp_path, *range(1, 7))
    removed = prune_checkpoints(tmp_path, 2, protect=[checkpoint_path(tmp_path, 3)])
    assert removed == [checkpoint_path(tmp_path, step) for step in (1, 2, 4)]
    assert sorted(tmp_path.iterdir()) == [checkpoint_path(tmp_path, step) for step in (3, 5, 6)]
    with pytest.raises(ValueError, match="at least one"):
        prune_checkpoints(tmp_path, 0)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "mutated.safetensors"
    save_checkpoint(path, {"w": torch.arange(5.0), "i": torch.arange(3)}, {"step": 4})
    return path, path.read_bytes(), load_checkpoint(path)


@given(st.data())
def test_any_changed_byte_is_noticed(good, data):
    path, content, before = good
    content = bytearray(content)
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        tensors, state = load_checkpoint(path)
    except LikenessError as error:
        assert "mutated.safetensors" in str(error)
        return
    assert state == before[1] and all(torch.equal(tensors[k], v) for k, v in before[0].items())
