"""A subject from a folder of photos, in the layouts that people have: flat, kohya's, train and test.

dog/a.jpg  dog/a.txt  dog/a_mask.png       photo, caption, mask
dog/masks/a.png                            the mask, in a folder of its own
dog/10_sks dog/a.jpg                       kohya: shown 10 times an epoch, the class noun is hinted
dog/train/a.jpg  dog/held_out/b.jpg        trained on, and held out ("held-out" and "test" too)
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..core.errors import LikenessError
from ..core.paths import safe_name, slug
from . import images
from .captions import Captions
from .subject import Photo, Subject, build_subject

HELD_OUT_FOLDERS = ("held_out", "held-out", "test")
MASK_FOLDER = "masks"
_KOHYA = re.compile(r"(\d{1,3})_(.+)")  # three digits at most: 2024_summer is a year
_MASK_STEM = re.compile(r"(.+)(?:_|\.)mask", re.IGNORECASE)
_IGNORED_FOLDERS = ("__macosx", "@eadir")  # what macOS and Synology put beside files


def load_folder(
    folder: Path,
    *,
    class_noun: str,
    identifier: str = "sks",
    description: str = "",
    name: str | None = None,
    recursive: bool = True,
) -> Subject:
    """Every photo under ``folder`` in natural order (2 before 10), with its caption and mask.

    An empty ``class_noun`` is taken from kohya's folder name where there is one. What can be passed over
    is recorded in ``Subject.warnings``; raises LikenessError naming the file for what cannot.
    """
    root = _existing(Path(folder))
    warnings: list[str] = []
    files = _list_files(root, recursive, warnings)
    pictures, masks = _sort_out(root, files, warnings)
    if not pictures:
        raise _no_photos(root, files)
    captions = Captions(root, files)
    photos = {
        path: read_photo(path, masks.get(path), captions.of(path), repeats=_kohya(root, path)[0])
        for path in pictures
    }
    held_out = [path for path in pictures if _is_held_out(root, path)]
    return build_subject(
        name=safe_name(name, what="subject name") if name else slug(root.name),
        class_noun=class_noun.strip() or _hinted_noun(root, pictures, identifier),
        identifier=identifier,
        description=description,
        photos=[photo for path, photo in photos.items() if path not in held_out],
        held_out=[photos[path] for path in held_out],
        split=f"by folder: {len(held_out)} of {len(photos)}" if held_out else "",
        warnings=[*warnings, *captions.warnings, *_kohya_warnings(root, pictures), *_mask_warnings(photos)],
    )


def read_photo(path: Path, mask_path: Path | None, caption: str | None, *, repeats: int = 1) -> Photo:
    """Decode a picture and its mask once, to prove them readable and to know them by content."""
    image = images.open_picture(path)
    mask = None if mask_path is None else images.open_mask(mask_path, *image.size)
    return Photo(
        path=path,
        sha256=images.pixels_hash(image),
        width=image.width,
        height=image.height,
        caption=caption,
        mask_path=mask_path,
        mask_sha256=None if mask is None else images.mask_hash(mask),
        repeats=repeats,
    )


def natural_key(path: Path) -> tuple[object, ...]:
    """Sorts a2 before a10, and A with a; ties by the exact name, so that the order is total."""
    text = path.as_posix()
    parts = re.split(r"([0-9]+)", text.casefold())
    return (*[(int(p), "") if p.isdigit() else (-1, p) for p in parts if p], (-2, text))


def _existing(folder: Path) -> Path:
    try:
        if folder.is_dir() and str(folder).strip() not in ("", "."):
            return folder.resolve()
        state = "is a file" if folder.exists() else "does not exist"
    except (OSError, ValueError) as error:
        state = f"cannot be opened: {error}"
    raise LikenessError(
        f"The photo folder {str(folder)!r} {state}", expected="a folder with photos of the subject"
    )


def _list_files(root: Path, recursive: bool, warnings: list[str]) -> list[Path]:
    """Regular visible files in natural order. Links that leave the folder are passed over."""

    def refuse(error: OSError) -> None:
        raise LikenessError(f"Could not read the folder {error.filename}: {error.strerror}") from error

    found = []
    for parent, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [f for f in folders if _visible(f) and (recursive or f.lower() == MASK_FOLDER)]
        found += [Path(parent, name) for name in names if _visible(name)]
    kept = []
    for path in sorted(found, key=lambda p: natural_key(p.relative_to(root))):
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
            warnings.append(f"{path} is a link that leaves the folder and was left out")
        elif path.is_file():
            kept.append(path)
    return kept


def _visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _IGNORED_FOLDERS


def _sort_out(root: Path, files: Iterable[Path], warnings: list[str]) -> tuple[list[Path], dict[Path, Path]]:
    """Pictures, and the mask of each. ``gas_mask.png`` without a ``gas.jpg`` is a picture."""
    pictures = [path for path in files if path.suffix.lower() in images.SUFFIXES]
    stems = {(path.parent, path.stem): path for path in pictures}
    photos, masks = [], {}
    for path in pictures:
        target = _mask_target(root, path)
        if target is None or (target not in stems and not _in_mask_folder(root, path)):
            photos.append(path)
        elif target in stems:
            masks[target] = path
        else:
            warnings.append(f"The mask {path} belongs to no photo")
    return photos, {path: masks[key] for path in photos if (key := (path.parent, path.stem)) in masks}


def _mask_target(root: Path, path: Path) -> tuple[Path, str] | None:
    """Folder and stem of the photo that this file would be the mask of."""
    match = _MASK_STEM.fullmatch(path.stem)
    stem = match[1] if match else path.stem
    if _in_mask_folder(root, path):
        parts = list(path.parent.relative_to(root).parts)
        parts.remove(next(part for part in parts if part.lower() == MASK_FOLDER))
        return root.joinpath(*parts), stem
    return (path.parent, stem) if match else None


def _in_mask_folder(root: Path, path: Path) -> bool:
    return any(part.lower() == MASK_FOLDER for part in path.parent.relative_to(root).parts)


def _is_held_out(root: Path, path: Path) -> bool:
    return path.relative_to(root).parts[0].lower() in HELD_OUT_FOLDERS and path.parent != root


def _kohya(root: Path, path: Path) -> tuple[int, str]:
    """Repeats and class hint of the nearest ``N_name`` folder, the root's own name included."""
    folders = (root.name, *path.parent.relative_to(root).parts)
    match = next((m for folder in reversed(folders) if (m := _KOHYA.fullmatch(folder))), None)
    return (max(1, int(match[1])), match[2].strip()) if match else (1, "")


def _hinted_noun(root: Path, pictures: Iterable[Path], identifier: str) -> str:
    """kohya's folder is ``N_identifier class``, or ``N_class``."""
    hints = sorted({hint for path in pictures if (hint := _kohya(root, path)[1])})
    if len(hints) > 1:
        raise LikenessError(
            f"The class noun is empty, and the folders in {root} hint at several: {', '.join(hints)}",
            fix="Give the class noun",
        )
    return hints[0].removeprefix(f"{identifier} ") if hints else ""


def _kohya_warnings(root: Path, pictures: Iterable[Path]) -> list[str]:
    repeats = sorted({_kohya(root, path) for path in pictures})
    return [
        f"Photos in {n}_{hint} are shown {n} times an epoch (kohya's naming)" for n, hint in repeats if n > 1
    ]


def _mask_warnings(photos: dict[Path, Photo]) -> list[str]:
    masked = [photo for photo in photos.values() if photo.mask_path is not None]
    notes = [f"The mask {p.mask_path} is empty" for p in masked if not np.any(p.mask())]
    if masked and len(masked) < len(photos):
        notes.append(f"{len(masked)} of {len(photos)} photos have a mask: the others count as all subject")
    return notes


def _no_photos(root: Path, files: list[Path]) -> LikenessError:
    names = ", ".join(path.name for path in files[:5])
    return LikenessError(
        f"The folder {root} has no photos" + (f", only {len(files)} other files ({names})" if files else ""),
        expected="PNG, JPEG, WebP, TIFF, BMP, GIF or AVIF files",
    )
