"""Training pictures: rendered once into one memory-mapped array, found again by every part.

Picture number i of the array is ``world.sample_picture(i)``. Nothing of the evaluation split is here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from .. import captions, render, world

NUM_PICTURES = 80_000
_CHUNK = 2_000
log = logging.getLogger(__name__)


def images(state_dir: Path, count: int = NUM_PICTURES) -> NDArray[np.uint8]:
    """Training pictures 0..count-1, uint8 (count, 64, 64, 3), rendered on first use."""
    return cached_images(state_dir / f"pictures-{count}.npy", count, _render_chunk)


def cached_images(
    path: Path, count: int, render_chunk: Callable[[int, int], NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """A memory-mapped array of pictures, made by ``render_chunk(start, stop)`` in worker processes."""
    if not path.exists():
        log.info("rendering %d pictures into %s", count, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npy")
        array = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=(count, 64, 64, 3))
        starts = range(0, count, _CHUNK)
        stops = [min(start + _CHUNK, count) for start in starts]
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
            for start, stop, chunk in zip(starts, stops, pool.map(render_chunk, starts, stops), strict=True):
                array[start:stop] = chunk
        array.flush()
        part.replace(path)
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]


def _render_chunk(start: int, stop: int) -> NDArray[np.uint8]:
    return np.stack([render.image(world.sample_picture(number)) for number in range(start, stop)])


def held_out(count: int, start: int = 0) -> tuple[list[world.Picture], NDArray[np.uint8]]:
    """Evaluation pictures ``start``.. of the ``eval`` split and their pixels."""
    pictures = [world.sample_picture(start + number, split="eval") for number in range(count)]
    return pictures, np.stack([render.image(picture) for picture in pictures])


def to_tensor(images_NHWC: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 (N, H, W, 3) to float (N, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(images_NHWC)).permute(0, 3, 1, 2).float() / 255


def batch_indices(seed: int, step: int, size: int, count: int) -> NDArray[np.int64]:
    """The ``size`` picture numbers of a step: a function of (seed, step) alone."""
    return np.random.default_rng((seed, step)).integers(0, count, size)


def captions_of(indices: Sequence[int], variant: int) -> list[str]:
    """A caption of each training picture; ``variant`` 0 is its own, others name other things of it."""
    pictures = [world.sample_picture(int(i)) for i in indices]
    return [
        captions.caption(p if variant == 0 else world.renamed(p, variant * 1_000_003 + int(i)))
        for p, i in zip(pictures, indices, strict=True)
    ]
