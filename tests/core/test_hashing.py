import dataclasses
import enum
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from likeness.core.errors import LikenessError
from likeness.core.hashing import hash_bytes, hash_file, hash_json, hash_tensors


class Kind(enum.Enum):
    LORA = "lora"


@dataclasses.dataclass(frozen=True)
class Inner:
    rank: int = 4


@dataclasses.dataclass(frozen=True)
class Config:
    rate: float = 1e-4
    inner: Inner = dataclasses.field(default_factory=Inner)
    kind: Kind = Kind.LORA
    path: Path = Path("a/b")
    note: str = dataclasses.field(default="", compare=False)


def test_golden_digests():
    """Every finished run is found by these: a change here must be meant."""
    assert hash_bytes(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert (
        hash_json({"b": [1, 2.5, None, True], "a": "\u00e9"})
        == "0b8cc543e984d4d7398f5f603a4b91d358a2565f1d6b6a058565d662854e37cf"
    )
    assert hash_json(Config()) == "53fae10c5f0416fdd3d2af60d35e51248b87b41fc5d5b882e7df7e78435101db"
    assert (
        hash_tensors({"b": torch.zeros(2, 3), "a": torch.ones(1, dtype=torch.bfloat16)})
        == "a7d722a7b07ffdab6a8cab817fbec3d16241352e26a0f58c2bea57a21580156b"
    )


def test_what_python_calls_equal_hashes_equally():
    assert hash_json({"a": 1, "b": (1, 2)}) == hash_json({"b": [1.0, 2], "a": 1})
    assert hash_json({"x", "y", "z"}) == hash_json(frozenset(["z", "y", "x"]))
    assert hash_json(Config()) == hash_json(Config(note="compared by nobody"))
    assert hash_json(Path("a") / "b") == hash_json("a/b")


CHANGED = [
    Config(rate=1e-5),
    Config(inner=Inner(rank=8)),
    Config(path=Path("a/c")),
    Inner(),
    None,
    [],
    {},
    "",
    0,
    False,
]


def test_what_differs_hashes_differently():
    assert len({hash_json(value) for value in [Config(), *CHANGED]}) == len(CHANGED) + 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(JSON, JSON)
def test_hashes_agree_with_equality(a, b):
    assert hash_json(a) == hash_json(a)
    if a != b:
        assert hash_json(a) != hash_json(b)


@pytest.mark.parametrize("value", [object(), {1: "a"}, torch.zeros(1), float("nan"), float("inf"), int])
def test_what_is_not_plain_is_refused(value):
    with pytest.raises((TypeError, ValueError)):
        hash_json([value])


def test_tensors_hash_by_content():
    base = torch.arange(6.0).reshape(2, 3)
    same = hash_tensors({"a": base})
    assert hash_tensors({"a": base.t().contiguous().t()}) == same
    others = [
        {"b": base},
        {"a": base.reshape(3, 2)},
        {"a": base.double()},
        {"a": base + 1},
        {"a": base.int()},
        {},
    ]
    assert same not in {hash_tensors(other) for other in others}


def test_files_hash_by_content_and_follow_changes(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    assert hash_file(path) == hash_bytes(b"one") == hash_file(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert hash_file(path) == hash_bytes(b"two")
    with pytest.raises(LikenessError, match=r"missing\.bin"):
        hash_file(tmp_path / "missing.bin")
    with pytest.raises(LikenessError, match="directory"):
        hash_file(tmp_path)
