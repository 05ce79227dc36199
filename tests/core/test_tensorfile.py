import io
import json
import pickle
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from likeness.core.errors import LikenessError
from likeness.core.hashing import hash_bytes
from likeness.core.tensorfile import _CODES, read_metadata, read_tensors, tensor_bytes, write_tensors
from safetensors.torch import load_file
from safetensors.torch import save as package_save


def tensor_of(dtype, shape):
    return torch.arange(1, torch.Size(shape).numel() + 1).reshape(shape).to(dtype)


@pytest.mark.parametrize("dtype", _CODES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3)])
def test_every_type_and_shape_comes_back(tmp_path, dtype, shape):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": tensor_of(dtype, shape), "b": torch.ones(3)}, {})
    again = read_tensors(path)[0]["a"]
    assert again.dtype == dtype and again.shape == torch.Size(shape)
    assert tensor_bytes(again) == tensor_bytes(tensor_of(dtype, shape))
    assert set(load_file(path)) == {"a", "b"}  # the package agrees


def test_strides_sharing_and_gradients(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    parameter = torch.nn.Parameter(base.clone())
    with torch.inference_mode():
        inferred = base * 2
    tensors = {"t": base.t(), "slice": base[:, 1], "all": base, "again": base, "p": parameter, "i": inferred,
               "expanded": torch.ones(1).expand(4), "flipped": base.flip(0)}  # fmt: skip
    write_tensors(tmp_path / "a.safetensors", tensors, {})
    again = read_tensors(tmp_path / "a.safetensors")[0]
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_what_was_read_does_not_hold_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.ones(1000)}, {})
    tensors = read_tensors(path)[0]
    with path.open("r+b") as file:
        file.seek(200)
        file.write(b"\xff" * 1000)
    assert bool((tensors["a"] == 1).all())
    tensors["a"] += 1  # and it can be written to


def test_the_same_bytes_in_every_process(tmp_path):
    """A golden digest holds for each process that runs this, whatever its hash seed and order of keys."""
    for order in ("a b cc", "cc b a"):
        dtypes = {"a": torch.float32, "b": torch.float16, "cc": torch.int64}
        tensors = {name: torch.full((3, 2), 5, dtype=dtypes[name]) for name in order.split()}
        write_tensors(tmp_path / "a.safetensors", tensors, {name: name * 2 for name in order.split()})
        content = (tmp_path / "a.safetensors").read_bytes()
        assert hash_bytes(content) == "90d93ca07a4a1d58bbed938a1aa783a641ffb52650ac5d8768ea8e77ab48e580"


def test_metadata(tmp_path):
    path = tmp_path / "a.safetensors"
    metadata = {"caption": '<b>"\u00e9\U0001f600\x00', "a": ""}
    write_tensors(path, {}, metadata)
    assert read_metadata(path) == metadata and read_tensors(path) == ({}, metadata)


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(2, dtype=torch.complex64), torch.eye(2).to_sparse(), torch.ones(2, device="meta")],
    ids=["complex", "sparse", "meta"],
)
def test_what_the_format_cannot_hold(tmp_path, tensor):
    with pytest.raises(LikenessError, match="odd"):
        write_tensors(tmp_path / "a.safetensors", {"odd": tensor}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["__metadata__", "\ud800"])
def test_names_that_the_format_cannot_hold(tmp_path, name):
    with pytest.raises(LikenessError):
        write_tensors(tmp_path / "a.safetensors", {name: torch.ones(1)}, {})
    assert list(tmp_path.iterdir()) == []


def header(table, data=b"", length=None):
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


class Canary:
    def __reduce__(self):
        return (open, ("canary", "w"))  # what a pickle would do if anything ran it


def checkpoint_zip():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Canary()))
    return buffer.getvalue()


def entry(start, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


GOOD = package_save({"a": torch.ones(4), "b": torch.ones(2, 2)})
MALFORMED = {
    "zero bytes": b"",
    "seven bytes": b"1234567",
    "header alone missing": (100).to_bytes(8, "little"),
    "header longer than the file": header({}, length=10_000),
    "absurd header length": header({}, length=2**63),
    "largest header length": header({}, length=2**64 - 1),
    "header over the limit": header({}, length=100_000_001),
    "header not JSON": header(b"{nope}"),
    "header a list": header([]),
    "header not UTF-8": header(b"\xff\xfe{}"),
    "deep JSON": header(b"[" * 50_000),
    "overlapping offsets": header({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
    "offsets with a hole": header({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20)),
    "offsets backwards": header({"a": entry(8, 0)}, bytes(8)),
    "offsets negative": header({"a": entry(-8, 0)}, bytes(8)),
    "offsets past the end": header({"a": entry(0, 8)}, bytes(4)),
    "bytes left over": header({"a": entry(0, 8)}, bytes(9)),
    "shape too large": header({"a": entry(0, 8, (3,))}, bytes(8)),
    "shape overflowing": header({"a": entry(0, 8, (2**62, 2**62))}, bytes(8)),
    "unknown dtype": header({"a": entry(0, 8, (1,), "F9")}, bytes(8)),
    "metadata not text": header({"__metadata__": {"a": 1}}),
    "pickle": pickle.dumps(Canary(), protocol=2),
    "pickle of protocol 4": pickle.dumps({"a": [Canary()]}, protocol=4),
    "torch archive": checkpoint_zip(),
    "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "web page": b"<!DOCTYPE html><html></html>",
    "truncated by one": GOOD[:-1],
    "truncated to half": GOOD[: len(GOOD) // 2],
    "picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_files_are_named(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.safetensors"
    path.write_bytes(MALFORMED[kind])
    for read in (read_tensors, read_metadata):
        with pytest.raises(LikenessError, match=r"bad\.safetensors"):
            read(path)
    assert list(tmp_path.iterdir()) == [path]  # no canary


KNOWN = {
    "pickle": "pickle",
    "torch archive": "pickle",
    "zero bytes": "0 bytes",
    "git-lfs pointer": "git-lfs",
    "web page": "web page",
}


@pytest.mark.parametrize(("kind", "word"), KNOWN.items())
def test_well_known_mistakes_are_told_apart(tmp_path, kind, word):
    (tmp_path / "bad.safetensors").write_bytes(MALFORMED[kind])
    with pytest.raises(LikenessError, match=word):
        read_tensors(tmp_path / "bad.safetensors")


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path, tmp_path / "a\0b", tmp_path / ("x" * 300)):
        with pytest.raises(LikenessError):
            read_tensors(path)


@given(st.data())
def test_any_mutation_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "mutant.safetensors"
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[: cut if data.draw(st.booleans()) else None])
    try:
        read_tensors(path)
    except LikenessError as error:
        assert "mutant.safetensors" in str(error)
