import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.core.errors import LikenessError
from likeness.subjects import images
from likeness.subjects.images import open_mask, open_picture
from PIL import Image

RED = (200, 30, 40)


def red(mode):
    return Image.new("RGB", (6, 4), RED).convert(mode, palette=Image.Palette.ADAPTIVE)


MODES = {
    "RGB": ("png", "bmp", "tif", "ppm", "webp", "tga"),
    "RGBA": ("png",),
    "P": ("png", "gif"),
    "CMYK": ("tif", "jpg"),
    "YCbCr": ("jpg",),
}


@pytest.mark.parametrize(("mode", "suffix"), [(m, suffix) for m in MODES for suffix in MODES[m]])
def test_every_colour_mode_comes_out_red(tmp_path, mode, suffix):
    options = {"lossless": True} if suffix == "webp" else {"quality": 100} if suffix == "jpg" else {}
    red(mode).save(tmp_path / f"a.{suffix}", **options)
    picture = open_picture(tmp_path / f"a.{suffix}")
    assert picture.mode == "RGB" and picture.size == (6, 4)
    assert np.abs(np.asarray(picture).astype(int) - RED).max() <= 3


DEEP = {
    "I;16": np.array([[0, 257, 32896, 65535]], np.uint16),
    "I": np.array([[0, 257, 32896, 65535]], np.int32),
    "F 0..1": np.array([[0, 1 / 255, 128 / 255, 1]], np.float32),
    "F 0..255": np.array([[0, 1, 128, 255]], np.float32),
    "L": np.array([[0, 1, 128, 255]], np.uint8),
}


@pytest.mark.parametrize("kind", DEEP)
def test_every_depth_of_grey(tmp_path, kind):
    Image.fromarray(DEEP[kind]).save(tmp_path / "a.tif")
    assert np.asarray(open_picture(tmp_path / "a.tif"))[0].tolist() == [[v] * 3 for v in (0, 1, 128, 255)]
    mask = open_mask(tmp_path / "a.tif", 4, 1)
    assert mask.dtype == np.float32 and mask[0].tolist() == pytest.approx(
        [0, 1 / 255, 128 / 255, 1], abs=1e-6
    )


def test_sixteen_bit_png_and_one_bit(tmp_path):
    Image.fromarray(DEEP["I;16"]).save(tmp_path / "a.png")
    assert np.asarray(open_picture(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 1, 128, 255]
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "b.png")
    assert np.asarray(open_picture(tmp_path / "b.png"))[0, :, 0].tolist() == [255, 0]


def test_dark_sixteen_bit_stays_dark(tmp_path):
    Image.fromarray(np.full((2, 2), 200, np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(open_picture(tmp_path / "a.png")).max() <= 1


def test_alpha_lies_on_white(tmp_path):
    Image.fromarray(np.array([[[0, 0, 0, 0], [0, 0, 0, 255], [0, 0, 0, 128]]], np.uint8)).save(
        tmp_path / "a.png"
    )
    assert np.asarray(open_picture(tmp_path / "a.png"))[0, :, 0].tolist() == [255, 0, 127]
    Image.new("LA", (1, 1), (0, 0)).save(tmp_path / "b.png")
    assert open_picture(tmp_path / "b.png").getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([9, 9, 9])
    palette.save(tmp_path / "c.png", transparency=0)
    assert open_picture(tmp_path / "c.png").getpixel((0, 0)) == (255, 255, 255)
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "d.png", transparency=(1, 2, 3))
    assert open_picture(tmp_path / "d.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_by_exif(tmp_path, orientation, suffix):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255  # white in the upper left corner
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"a.{suffix}", exif=exif)
    picture = np.asarray(open_picture(tmp_path / f"a.{suffix}")).astype(int)
    assert picture.shape == (16, 32, 3) and np.abs(picture - upright).max() <= 60  # ringing of JPEG and WebP
    assert picture[:8, :16].mean() > 250 and picture[8:].mean() < 5


def test_broken_exif_is_no_reason_to_refuse(tmp_path):
    Image.new("RGB", (4, 4), RED).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff broken")
    assert open_picture(tmp_path / "a.jpg").size == (4, 4)


def png_header(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I", 20)
        + b"IDAT"
        + zlib.compress(bytes(1000))
    )


BAD = {
    "zero bytes": b"",
    "text": b"this is no picture",
    "pickle": b"\x80\x04K\x01.",
    "PNG signature alone": b"\x89PNG\r\n\x1a\n",
    "JPEG signature alone": b"\xff\xd8\xff\xe0",
    "101 megapixels": png_header(10_100, 10_000),
    "a bomb": png_header(60_000, 60_000),
    "largest size": png_header(2**31 - 1, 2**31 - 1),
    "no width": png_header(0, 10),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "GIF header": b"GIF89a\x01\x00\x01\x00",
    "TIFF header": b"II*\x00\x08\x00\x00\x00",
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_named(tmp_path, kind):
    (tmp_path / "bad.png").write_bytes(BAD[kind])
    with pytest.raises(LikenessError, match=r"bad\.png"):
        open_picture(tmp_path / "bad.png")


def test_size_is_told_before_it_is_decoded(tmp_path):
    for kind in ("101 megapixels", "a bomb"):
        (tmp_path / "bad.png").write_bytes(BAD[kind])
        with pytest.raises(LikenessError, match="too large"):
            open_picture(tmp_path / "bad.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "gif"])
def test_truncated_files_are_named(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"a.{suffix}")
    content = (tmp_path / f"a.{suffix}").read_bytes()
    (tmp_path / f"bad.{suffix}").write_bytes(content[: len(content) // 2])
    with pytest.raises(LikenessError, match=r"bad\."):
        open_picture(tmp_path / f"bad.{suffix}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mutants")
    contents = []
    for suffix in ("png", "jpg", "tif", "gif", "webp", "bmp"):
        Image.new("P" if suffix == "gif" else "RGB", (8, 8)).save(folder / f"a.{suffix}")
        contents.append((folder / f"a.{suffix}").read_bytes())
    return folder, contents


@settings(max_examples=60)
@given(st.data())
def test_any_mutation_is_read_or_refused(whole, data):
    folder, contents = whole
    content = bytearray(data.draw(st.sampled_from(contents)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "mutant.png").write_bytes(content)
    try:
        assert open_picture(folder / "mutant.png").mode == "RGB"
    except LikenessError as error:
        assert "mutant.png" in str(error)


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "none.png", tmp_path, tmp_path / "a\0b.png"):
        with pytest.raises(LikenessError):
            open_picture(path)


def test_masks_of_another_size(tmp_path):
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "m.png")
    mask = open_mask(tmp_path / "m.png", 8, 4)
    assert mask.shape == (4, 8) and mask[:, 0].max() == 0 and mask[:, -1].min() == 1
    with pytest.raises(LikenessError, match=r"m\.png is 2 x 1 pixels and its photo 100 x 100"):
        open_mask(tmp_path / "m.png", 100, 100)


def test_our_own_limit_is_below_pillows():
    assert images.MAX_PIXELS < 2 * Image.MAX_IMAGE_PIXELS
