"""Picture files, whoever made them, as upright 8-bit RGB; mask files as floats."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..core.errors import LikenessError

log = logging.getLogger(__name__)

MAX_PIXELS = 100_000_000  # 100 megapixels: above every camera in common use, 300 MB once decoded
SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("png", "jpg", "jpeg", "jpe", "jfif", "mpo", "webp", "bmp", "tif", "tiff", "gif", "avif"),
        *("ppm", "pgm", "pbm", "jp2", "tga", "heic", "heif"),
    )
)
# Only formats that decode in memory: Pillow's EPS, for one, runs another program on the file.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "PPM", "JPEG2000", "TGA", "HEIF")
_ORIENTATION = 0x0112
_UPRIGHT = {  # EXIF 2.3, tag Orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_picture(path: Path) -> Image.Image:
    """The first frame: upright by EXIF, any mode or depth as 8-bit RGB, alpha composited on white.

    Raises LikenessError naming the file when it is missing, empty, truncated, too large or no picture.
    """
    return _to_rgb(_decode(path))


def open_mask(path: Path, width: int, height: int) -> np.ndarray:
    """A mask file as float32 (height, width) in [0, 1]: white is the subject.

    A mask of another size and the same shape is scaled. Raises LikenessError for another shape.
    """
    mask = _to_grey(_decode(path))
    if mask.size != (width, height):
        if abs(mask.width * height - mask.height * width) >= max(width, height):  # off by a pixel or more
            raise LikenessError(
                f"The mask {path} is {mask.width} x {mask.height} pixels and its photo {width} x {height}",
                expected="a mask of its photo's size, or of the same shape",
            )
        mask = mask.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(mask, dtype=np.float32) / 255.0


def pixels_hash(image: Image.Image) -> str:
    """sha256 of a decoded picture's size and bytes."""
    return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()


def mask_hash(mask_HW: np.ndarray) -> str:
    """sha256 of a mask's size and 8-bit values."""
    values = np.round(mask_HW * 255).astype(np.uint8)
    return hashlib.sha256(str(values.shape).encode() + values.tobytes()).hexdigest()


def _decode(path: Path) -> Image.Image:
    """Open, load and turn upright. Decoders raise anything at all on a broken file, hence the breadth."""
    try:
        if not path.is_file():
            raise LikenessError(f"There is no picture {path}")
        if path.stat().st_size == 0:
            raise LikenessError(f"The picture {path} is empty (0 bytes)", fix="Remove it or copy it again")
        Image.init()
        with Image.open(path, formats=[f for f in _FORMATS if f in Image.OPEN]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(path, f"{image.width} x {image.height} pixels")
            image.load()
            return _upright(image, path)
    except LikenessError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path, str(error)) from error
    except Exception as error:
        raise LikenessError(
            f"{path} cannot be read as a picture: {_reason(error)}",
            expected="a complete PNG, JPEG, WebP, TIFF, BMP, GIF or AVIF file",
            fix="Remove it, copy it again or convert it to PNG or JPEG",
        ) from error


def _reason(error: Exception) -> str:
    return "its format is not known" if isinstance(error, UnidentifiedImageError) else str(error)


def _too_large(path: Path, size: str) -> LikenessError:
    return LikenessError(
        f"The picture {path} is too large: {size}",
        expected=f"at most {MAX_PIXELS // 1_000_000} megapixels",
        fix="Scale it down",
    )


def _upright(image: Image.Image, path: Path) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception as error:  # a good picture may carry broken EXIF
        log.warning("%s: its EXIF cannot be read (%s); taken as upright", path, error)
        orientation = 1
    turn = _UPRIGHT.get(orientation)
    return image.copy() if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _deep_to_grey(image).convert("RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _to_grey(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _deep_to_grey(image)
    return _to_rgb(image).convert("L")


def _deep_to_grey(image: Image.Image) -> Image.Image:
    """16- and 32-bit grey, integer or float, by the smallest full range that holds it, to 8 bits."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0).clip(0)
    top = float(values.max(initial=0.0))
    ranges = [65535.0] if image.mode.startswith("I;16") else [255.0, 65535.0]
    if image.mode == "F":
        ranges.insert(0, 1.0)
    full = next((r for r in ranges if top <= r), top)
    return Image.fromarray(np.round(values * (255.0 / full)).astype(np.uint8))
