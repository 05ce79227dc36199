import os
import signal
import stat
import zipfile

import numpy as np
import pytest
import torch
from likeness.core.errors import LikenessError
from likeness.subjects import from_images, load_folder, load_zip, sources


def make_zip(path, entries, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content, **options)
    return path


@pytest.fixture
def png(paint, tmp_path):
    return lambda seed: paint(tmp_path / "scratch" / f"{seed}.png", seed).read_bytes()


def test_a_zip_is_the_folder_it_holds(tmp_path, png):
    entries = {
        "photos/a.png": png(1),
        "photos/a.txt": "a {}",
        "photos/a_mask.png": png(5),
        "photos/b.png": png(2),
        "photos/test/c.png": png(3),
        "__MACOSX/photos/._a.png": b"junk",
        "photos/.DS_Store": b"junk",
        "photos/run.exe": b"junk",
    }
    path, store = make_zip(tmp_path / "My dog.zip", entries), tmp_path / "store"
    subject = load_zip(path, store, class_noun="dog")
    assert subject.name == "My dog"
    assert [photo.path.name for photo in subject.photos] == ["a.png", "b.png"]
    assert subject.photos[0].caption == "a {}" and subject.photos[0].mask_path is not None
    assert len(subject.held_out) == 1
    assert not list(store.rglob("*.exe")) and not list(store.glob(".*"))
    path.rename(tmp_path / "again.zip")
    assert load_zip(tmp_path / "again.zip", store, class_noun="dog").photos == subject.photos


@pytest.mark.parametrize(
    "name", ["../evil.png", "a/../../evil.png", "/evil.png", "..\\evil.png", "C:\\evil.png", "nul.png"]
)
def test_no_entry_leaves_the_store(tmp_path, png, name):
    path = make_zip(tmp_path / "bad.zip", {"a.png": png(1), name: png(2)})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(LikenessError, match=r"bad\.zip"):
        load_zip(path, tmp_path / "store", class_noun="dog")
    assert [p for p in sorted(tmp_path.rglob("*")) if p not in before] == [tmp_path / "store"]


def test_links_in_a_zip_are_passed_over(tmp_path, png):
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", png(1))
        archive.writestr(link, "/etc/passwd")
    assert len(load_zip(tmp_path / "a.zip", tmp_path / "store", class_noun="dog").photos) == 1


def test_bombs_are_stopped_while_unpacking(tmp_path, png, monkeypatch):
    monkeypatch.setattr(sources, "MAX_TOTAL_BYTES", 1 << 20)
    path = make_zip(tmp_path / "bomb.zip", {"a.png": png(1), "b.txt": bytes(4 << 20)})
    with pytest.raises(LikenessError, match=r"bomb\.zip unpacks to more"):
        load_zip(path, tmp_path / "store", class_noun="dog")
    assert list((tmp_path / "store").iterdir()) == []
    monkeypatch.setattr(sources, "MAX_ENTRIES", 1)
    with pytest.raises(LikenessError, match="2 files"):
        load_zip(path, tmp_path / "store", class_noun="dog")


def corrupt_stream(content):
    start = content.index(b"0.png") + len("0.png")  # where the deflated bytes begin
    return content[:start] + b"\xff" * 40 + content[start + 40 :]


def damaged(content):
    middle = len(content) // 3
    return content[:middle] + bytes(64) + content[middle + 64 :]


@pytest.mark.parametrize(
    "spoil", [lambda c: b"", lambda c: b"no zip", lambda c: c[: len(c) // 2], damaged, corrupt_stream]
)
def test_what_is_no_whole_zip_is_named(tmp_path, png, spoil):
    path = make_zip(tmp_path / "bad.zip", {f"{n}.png": png(n) for n in range(4)})
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(LikenessError, match=r"bad\.zip"):
        load_zip(path, tmp_path / "store", class_noun="dog")
    assert list((tmp_path / "store").iterdir()) == []


def test_an_encrypted_zip_is_named(tmp_path, png):
    path = make_zip(tmp_path / "secret.zip", {"a.png": png(1)})
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flag of encryption, in the entry and in the directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(LikenessError, match=r"secret\.zip.*password"):
        load_zip(path, tmp_path / "store", class_noun="dog")


def test_missing_and_empty_zips(tmp_path):
    with pytest.raises(LikenessError, match=r"none\.zip"):
        load_zip(tmp_path / "none.zip", tmp_path / "store", class_noun="dog")
    with pytest.raises(LikenessError, match="directory"):
        load_zip(tmp_path, tmp_path / "store", class_noun="dog")
    with pytest.raises(LikenessError, match="no photos"):
        load_zip(make_zip(tmp_path / "empty.zip", {}), tmp_path / "store", class_noun="dog")


def test_a_kill_while_unpacking_leaves_nothing(tmp_path, png, monkeypatch):
    path, store = make_zip(tmp_path / "a.zip", {"a.png": png(1), "b.png": png(2)}), tmp_path / "store"
    pid = os.fork()
    if not pid:
        sources._extract_one = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
        try:
            load_zip(path, store, class_noun="dog")
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert len(list(store.iterdir())) == 1
    assert len(load_zip(path, store, class_noun="dog").photos) == 2
    assert [p.name[:4] for p in store.iterdir()] == ["zip-"]


# --- tensors -------------------------------------------------------------------------------------


def batch(num=2, height=6, width=8, channels=3):
    return torch.rand(num, height, width, channels, generator=torch.Generator().manual_seed(num))


def test_images_come_back_to_the_nearest_step(tmp_path):
    images = batch()
    before = images.clone()
    with torch.inference_mode():
        subject = from_images(images, tmp_path, class_noun="dog", captions=["a {}", "b {}"])
    assert torch.equal(images, before)
    for photo, image in zip(subject.photos, images, strict=True):
        assert np.abs(np.asarray(photo.open()) / 255 - image.numpy()).max() <= 0.5 / 255 + 1e-6
    assert [photo.caption for photo in subject.photos] == ["a {}", "b {}"]


def test_the_store_is_addressed_by_content(tmp_path):
    first = from_images(batch(), tmp_path, class_noun="dog")
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert from_images(batch(), tmp_path, class_noun="dog") == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_alpha(tmp_path, channels):
    images = torch.zeros(1, 4, 4, channels)
    picture = from_images(images, tmp_path, class_noun="dog").photos[0].open()
    assert picture.getpixel((0, 0)) == ((0, 0, 0) if channels == 1 else (255, 255, 255))


def test_masks(tmp_path):
    masks = torch.zeros(2, 6, 8)
    masks[1, :, 4:] = 1
    subject = from_images(batch(), tmp_path, class_noun="dog", masks=masks)
    assert [float(photo.mask().mean()) for photo in subject.photos] == [0, 0.5]
    subject = from_images(batch(), tmp_path, class_noun="dog", masks=masks[1:])
    assert [float(photo.mask().mean()) for photo in subject.photos] == [0.5, 0.5]
    subject = from_images(batch(), tmp_path, class_noun="dog", masks=torch.zeros(1, 64, 64))
    assert [photo.mask() for photo in subject.photos] == [None, None]


BAD_BATCHES = [
    torch.zeros(0, 4, 4, 3), torch.zeros(4, 4, 3), torch.zeros(1, 4, 4, 2), torch.zeros(1, 0, 4, 3),
    torch.full((1, 4, 4, 3), float("nan")), torch.full((1, 4, 4, 3), float("inf")),
    torch.zeros(1).expand(1, 20_000, 20_000, 3),
]  # fmt: skip


@pytest.mark.parametrize("images", BAD_BATCHES, ids=lambda t: str(tuple(t.shape)))
def test_bad_batches(tmp_path, images):
    with pytest.raises(LikenessError, match="images"):
        from_images(images, tmp_path / "store", class_noun="dog")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "masks",
    [torch.zeros(3, 6, 8), torch.zeros(6, 8), torch.ones(2, 9, 3), torch.full((2, 6, 8), float("nan"))],
)
def test_bad_masks(tmp_path, masks):
    with pytest.raises(LikenessError, match="mask"):
        from_images(batch(), tmp_path, class_noun="dog", masks=masks)


def test_other_bad_input(tmp_path):
    with pytest.raises(LikenessError, match="3 captions for 2 images"):
        from_images(batch(), tmp_path, class_noun="dog", captions=["a", "b", "c"])
    with pytest.raises(LikenessError, match="class noun"):
        from_images(batch(), tmp_path, class_noun="")
    subject = from_images(batch() * 255, tmp_path, class_noun="dog")
    assert any("clipped" in warning for warning in subject.warnings)


def test_a_batch_and_its_folder_are_the_same_subject(tmp_path):
    subject = from_images(batch(1), tmp_path / "store", class_noun="dog")
    assert load_folder(tmp_path / "store", class_noun="dog").content_hash == subject.content_hash
