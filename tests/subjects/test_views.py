import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from likeness.subjects.folder import read_photo
from likeness.subjects.views import bucket_of, buckets, crop_box, load_square, load_view
from PIL import Image


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """60 x 40: red rises to the right, green downwards; the mask is the left third."""
    folder = tmp_path_factory.mktemp("photo")
    y, x = np.mgrid[0:40, 0:60]
    pixels = np.stack([x * 4, y * 6, np.zeros_like(x)], -1).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    Image.fromarray(np.where(x < 20, 255, 0).astype(np.uint8)).save(folder / "m.png")
    return read_photo(folder / "a.png", folder / "m.png", None)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_view_of_the_same_size_is_the_photo(photo):
    image, mask = load_view(photo, 60, 40)
    assert torch.equal(image, torch.from_numpy(np.array(photo.open())).permute(2, 0, 1) / 127.5 - 1)
    assert torch.equal(mask[0], torch.from_numpy(photo.mask()))


@pytest.mark.parametrize("crop", ["center", "random", "resize"])
@pytest.mark.parametrize("size", [8, 32, 96])
def test_shapes_ranges_and_types(photo, crop, size):
    image, mask = load_square(photo, size, crop=crop, generator=generator())
    assert image.shape == (3, size, size) and mask.shape == (1, size, size)
    assert image.dtype == mask.dtype == torch.float32
    assert image.min() >= -1 and image.max() <= 1 and mask.min() >= 0 and mask.max() <= 1


def test_a_centre_crop_is_the_centre(photo):
    image, mask = load_square(photo, 40)
    assert torch.equal(image, load_view(photo, 60, 40)[0][:, :, 10:50])
    assert mask[0, :, :10].min() == 1 and mask[0, :, 10:].max() == 0


def test_resizing_keeps_all_of_the_photo(photo):
    image, mask = load_square(photo, 20, crop="resize")
    assert image[0, 0, 0] < -0.95 and image[0, 0, -1] > 0.8
    assert float(mask.mean()) == pytest.approx(1 / 3, abs=1e-2)


@pytest.mark.parametrize("crop", ["center", "random", "resize"])
def test_image_and_mask_move_together(photo, crop):
    for seed in range(8):
        image, mask = load_square(photo, 40, crop=crop, flip=True, generator=generator(seed))
        is_left = (image[0] + 1) * 127.5 / 4 < 19.5
        assert float((is_left == (mask[0] > 0.5)).float().mean()) > 0.95


def test_flips_only_when_asked(photo):
    plain = load_square(photo, 40)[0]
    views = [load_square(photo, 40, flip=True, generator=generator(seed))[0] for seed in range(20)]
    flipped = [torch.equal(view, plain.flip(2)) for view in views]
    assert all(f or torch.equal(view, plain) for f, view in zip(flipped, views, strict=True))
    assert 3 <= sum(flipped) <= 17


def test_randomness_comes_from_the_generator_alone(photo):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = load_square(photo, 16, crop="random", flip=True, generator=generator(3))[0]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(load_square(photo, 16, crop="random", flip=True, generator=generator(3))[0], first)
    others = [load_square(photo, 16, crop="random", generator=generator(seed))[0] for seed in range(5)]
    assert sum(torch.equal(a, b) for a in others for b in others) == len(others)
    for options in ({"crop": "random"}, {"flip": True}):
        with pytest.raises(ValueError, match="generator"):
            load_square(photo, 16, **options)


def test_reduction_is_antialiased(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    image = load_square(read_photo(tmp_path / "a.png", None, None), 8)[0]
    assert image[:, :, 1:-1].abs().max() < 0.05  # grey, not stripes


def test_without_a_mask_all_is_subject(tmp_path):
    Image.new("RGB", (5, 900)).save(tmp_path / "a.png")
    image, mask = load_square(read_photo(tmp_path / "a.png", None, None), 16)
    assert image.shape == (3, 16, 16) and bool((mask == 1).all())


@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.floats(0.2, 5),
    st.sampled_from(["center", "random", "resize"]),
)
def test_a_crop_lies_in_the_photo(width, height, aspect, crop):
    left, top, right, bottom = crop_box(width, height, aspect, crop, generator())
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    if crop != "resize":
        assert (right - left) / (bottom - top) == pytest.approx(aspect, rel=1e-6)
        assert right - left == pytest.approx(width) or bottom - top == pytest.approx(height)


@pytest.mark.parametrize(("edge", "step"), [(512, 64), (768, 64), (1024, 64), (64, 8), (500, 64)])
def test_buckets_hold_the_rules(edge, step):
    sizes = buckets(edge, step=step)
    assert (edge // step * step,) * 2 in sizes
    for width, height in sizes:
        assert width % step == height % step == 0
        assert width * height <= edge * edge and max(width, height) <= 2 * min(width, height)
        assert (height, width) in sizes


def test_the_nearest_bucket(photo):
    assert bucket_of(photo, 512) == (640, 384)
    assert buckets(512) == [(640, 384), (576, 448), (512, 512), (448, 576), (384, 640)]
    with pytest.raises(ValueError, match="step"):
        buckets(32)
