"""A small subject, judges of its pictures, and a way to run a method on the tiny pipeline."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from likeness.core.randomness import normal
from likeness.subjects import from_images, split_held_out

CAPTIONS = ("a photo of {}", "a photo of {} in the snow", "a photo of {} on a beach", "a photo of {} sitting")


class TinyEncoder:
    """Unit features from a fixed random projection of 4x4 thumbnails; texts by their letters."""

    def __init__(self, seed: int) -> None:
        self.weight_DF = normal((8, 48), seed, "tiny encoder")

    def encode(self, images_B3HW):
        small_BF = torch.nn.functional.adaptive_avg_pool2d(images_B3HW.float().cpu(), 4).flatten(1)
        return torch.nn.functional.normalize(small_BF @ self.weight_DF.T, dim=-1)

    def encode_text(self, texts):
        rows = [torch.tensor([float(sum(map(ord, text[i::8]))) for i in range(8)]) for text in texts]
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


@pytest.fixture(scope="session")
def encoders():
    return SimpleNamespace(clip=TinyEncoder(0), dino=TinyEncoder(1))


@pytest.fixture(scope="session")
def subject(tmp_path_factory: pytest.TempPathFactory):
    """Three training photos and one held out, 32x32, each with a caption."""
    store: Path = tmp_path_factory.mktemp("photos")
    images_BHWC = torch.rand(4, 32, 32, 3, generator=torch.Generator().manual_seed(5))
    whole = from_images(images_BHWC, store, class_noun="fish", name="finn", captions=CAPTIONS)
    return split_held_out(whole, count=1, seed=0)
