"""Subjects that do not come as a folder: a zip file, and the images and masks of a graph.

Both become a folder in a content-addressed store: the same content gives the same paths, written once.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.errors import LikenessError, RunLocked
from ..core.hashing import hash_file
from ..core.lock import run_lock
from ..core.paths import inside, safe_name, slug, sync_folder, write_atomic, write_error
from . import images
from .folder import HELD_OUT_FOLDERS, MASK_FOLDER, load_folder, read_photo
from .subject import Subject, build_subject

# Limits of an archive, against bombs: far above any set of photos of one subject.
MAX_ENTRIES = 10_000
MAX_TOTAL_BYTES = 4 << 30
_CHUNK_BYTES = 1 << 20
_UNPACKING = ".unpacking-"
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError)
_KEPT_SUFFIXES = images.SUFFIXES | {".txt", ".caption", ".json", ".jsonl"}


def load_zip(
    path: Path,
    store: Path,
    *,
    class_noun: str,
    identifier: str = "sks",
    description: str = "",
    name: str | None = None,
) -> Subject:
    """A subject from a zip file, unpacked once under ``store``; layouts are those of ``load_folder``.

    Raises LikenessError for a file that is no zip, is encrypted, unpacks to too much, or names places
    outside itself; nothing is left behind.
    """
    folder = Path(store) / f"zip-{hash_file(Path(path))[:32]}"
    if not folder.is_dir():
        _unpack(Path(path), folder)
    return load_folder(
        _content_root(folder),
        class_noun=class_noun,
        identifier=identifier,
        description=description,
        name=name or slug(Path(path).stem),
    )


def from_images(
    images_BHWC: Tensor,
    store: Path,
    *,
    class_noun: str,
    identifier: str = "sks",
    description: str = "",
    name: str | None = None,
    masks: Tensor | None = None,
    captions: Sequence[str] | None = None,
) -> Subject:
    """A subject from a batch in [0, 1] of 1, 3 or 4 channels (the fourth is alpha), kept as PNG in ``store``.

    ``masks`` is (B, H, W) or (1, H, W), 1 on the subject; ``captions`` has one text for each image, or one
    for all. The batch is read, never kept or changed. Raises LikenessError for what has another shape.
    """
    pixels_BHWC, warnings = _to_bytes(images_BHWC)
    masks_BHW = _to_mask_bytes(masks, pixels_BHWC.shape, warnings)
    texts = _per_image(captions, len(pixels_BHWC))
    photos = []
    for number, pixels_HWC in enumerate(pixels_BHWC):
        path = store_png(Path(store), np.squeeze(pixels_HWC, 2) if pixels_HWC.shape[2] == 1 else pixels_HWC)
        mask_path = None if masks_BHW is None else store_png(Path(store), masks_BHW[number])
        photos.append(read_photo(path, mask_path, texts[number]))
    return build_subject(
        name=safe_name(name, what="subject name") if name else slug(class_noun),
        class_noun=class_noun,
        identifier=identifier,
        description=description,
        photos=photos,
        warnings=warnings,
    )


# --- zip -----------------------------------------------------------------------------------------


def _unpack(path: Path, folder: Path) -> None:
    """Unpack beside and rename, so that the folder is complete or not there."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(folder.parent)
        workplace = Path(tempfile.mkdtemp(prefix=_UNPACKING, dir=folder.parent))
        try:
            with run_lock(workplace), zipfile.ZipFile(path) as archive:
                _extract(path, archive, workplace / "content")
                if not folder.is_dir():  # another process may have been faster, with the same content
                    (workplace / "content").replace(folder)
            sync_folder(folder.parent)
        finally:
            shutil.rmtree(workplace, ignore_errors=True)
    except _BROKEN_ZIP as error:
        raise LikenessError(
            f"{path} is not a zip file that can be read: {error}",
            expected="a complete zip file without a password",
        ) from error
    except OSError as error:
        raise write_error(folder, error) from error


def _remove_unfinished(store: Path) -> None:
    """What killed processes left of their unpacking; a living one's is locked."""
    for workplace in store.glob(f"{_UNPACKING}*"):
        with suppress(RunLocked):
            with run_lock(workplace):
                pass
            shutil.rmtree(workplace, ignore_errors=True)


def _extract(path: Path, archive: zipfile.ZipFile, target: Path) -> None:
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    if len(entries) > MAX_ENTRIES:
        raise LikenessError(f"{path} has {len(entries)} files", expected=f"at most {MAX_ENTRIES}")
    target.mkdir()
    left_bytes = MAX_TOTAL_BYTES
    for entry in entries:
        goal = inside(target, entry.filename, what=f"name in {path.name}")
        parts = PurePosixPath(entry.filename.replace("\\", "/")).parts
        if any(part.startswith((".", "__MACOSX")) for part in parts) or stat.S_ISLNK(
            entry.external_attr >> 16
        ):
            continue
        if goal.suffix.lower() in _KEPT_SUFFIXES:
            left_bytes -= _extract_one(path, archive, entry, goal, left_bytes)


def _extract_one(
    path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, goal: Path, left_bytes: int
) -> int:
    """Bytes written. They are counted as they come: what a header says of its size may be a lie."""
    goal.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with archive.open(entry) as source, goal.open("wb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            written += len(chunk)
            if written > left_bytes:
                raise LikenessError(
                    f"{path} unpacks to more than {MAX_TOTAL_BYTES >> 30} GiB", fix="Use a folder instead"
                )
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return written


def _content_root(folder: Path) -> Path:
    """Through single folders that only wrap the rest, as most zip tools make them."""
    entries = list(folder.iterdir())
    wraps = len(entries) == 1 and entries[0].is_dir()
    if wraps and entries[0].name.lower() not in (*HELD_OUT_FOLDERS, MASK_FOLDER):
        return _content_root(entries[0])
    return folder


# --- tensors -------------------------------------------------------------------------------------


def _to_bytes(images_BHWC: Tensor) -> tuple[np.ndarray, list[str]]:
    if images_BHWC.ndim != 4 or images_BHWC.shape[3] not in (1, 3, 4) or images_BHWC.numel() == 0:
        raise LikenessError(
            f"The images have the shape {tuple(images_BHWC.shape)}",
            expected="(number, height, width, channels) with 1, 3 or 4 channels and at least one image",
        )
    if images_BHWC.shape[1] * images_BHWC.shape[2] > images.MAX_PIXELS:
        raise LikenessError(f"The images are too large: {tuple(images_BHWC.shape)}", fix="Scale them down")
    return quantise(images_BHWC, what="images")


def quantise(values: Tensor, *, what: str) -> tuple[np.ndarray, list[str]]:
    """[0, 1] to 0..255, rounded; what lies outside is clipped with a warning."""
    copy = values.detach().to("cpu", torch.float32, copy=True)
    if not bool(torch.isfinite(copy).all()):
        raise LikenessError(f"The {what} have values that are not finite", expected="values from 0 to 1")
    low, high = float(copy.min()), float(copy.max())
    note = f"The {what} range from {low:.3g} to {high:.3g} and were clipped to 0..1"
    warnings = [note] if low < -1e-3 or high > 1 + 1e-3 else []
    return copy.clamp_(0, 1).mul_(255).round_().to(torch.uint8).numpy(), warnings


def _to_mask_bytes(masks_BHW: Tensor | None, shape: Sequence[int], warnings: list[str]) -> np.ndarray | None:
    if masks_BHW is None:
        return None
    if masks_BHW.ndim != 3 or masks_BHW.shape[0] not in (1, shape[0]) or masks_BHW.numel() == 0:
        raise LikenessError(
            f"The masks have the shape {tuple(masks_BHW.shape)}",
            expected=f"(number, height, width) with one mask, or one for each of the {shape[0]} images",
        )
    values, notes = quantise(masks_BHW, what="masks")
    if values.shape[1:] != tuple(shape[1:3]) and not values.any():
        return None  # ComfyUI's Load Image gives this 64 x 64 placeholder for a picture without alpha
    warnings += notes
    return np.broadcast_to(values, (shape[0], *values.shape[1:]))


def store_png(store: Path, pixels: np.ndarray) -> Path:
    """Write the picture under a name made of its content, unless it is there."""
    digest = hashlib.sha256(str(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()
    path = store / f"image-{digest[:32]}.png"
    if not path.is_file():
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=1)
        write_atomic(path, buffer.getvalue())
    return path


def _per_image(captions: Sequence[str] | None, num_images: int) -> list[str | None]:
    texts = [" ".join(text.split()) or None for text in captions or []]
    if len(texts) not in (0, 1, num_images):
        raise LikenessError(
            f"There are {len(texts)} captions for {num_images} images", expected="none, one, or one for each"
        )
    return texts if len(texts) == num_images else (texts or [None]) * num_images
