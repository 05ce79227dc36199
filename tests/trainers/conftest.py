"""A small subject, judges of its pictures, and a way to run a method on the tiny pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from likeness.backbones.base import BaseModel
from likeness.core.checkpoint import load_checkpoint, newest_checkpoint
from likeness.core.hashing import hash_bytes, hash_tensors
from likeness.core.randomness import normal
from likeness.subjects import from_images, split_held_out
from likeness.trainers import METHODS
from likeness.trainers.attractor import Attractor
from likeness.trainers.events import Done, Step

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
    masks_BHW = torch.zeros(4, 32, 32)
    masks_BHW[:, 8:24, 4:20] = 1.0
    words = {"class_noun": "fish", "name": "finn", "captions": CAPTIONS}
    whole = from_images(images_BHWC, store, masks=masks_BHW, **words)
    return split_held_out(whole, count=1, seed=0)


@dataclass(frozen=True)
class Case:
    """One method's row in the table of behaviour tests."""

    method: str
    small: Mapping[str, Any]  # settings of a run of a few steps
    trained: str  # how the names of what it trains begin
    model: str = "sd"  # which of ``bases`` it trains on

    def config(self, **changes: Any):
        return METHODS[self.method].config(**{**SMALL, **self.small, **changes})

    def events(self, base, subject, runs_root, *, seed=0, monitor=None, encoders=None, prior=None, **changes):
        """The run's iterator of events."""
        extra = {"prior": prior} if prior is not None else {}
        return METHODS[self.method].train(
            base, subject, self.config(**changes),
            runs_root=runs_root, seed=seed, monitor=monitor, encoders=encoders, **extra,
        )  # fmt: skip


# Cosine and a warmup, so that a forgotten schedule shows; two batches a step, so that accumulation does.
SMALL = {
    "steps": 6, "batch_size": 2, "accumulation": 2, "learning_rate": 1e-2, "schedule": "cosine",
    "warmup_steps": 2, "checkpoint_every": 2,
}  # fmt: skip
CASES = {  # a method joins every behaviour test with one row
    "textual_inversion": Case("textual_inversion", {"num_vectors": 2, "max_norm": 1.5}, "rows"),
    "textual_inversion+": Case("textual_inversion", {"attractor": Attractor(prompts="random")}, ""),
    "neti": Case("neti", {}, "mapper."),
    "neti+": Case("neti", {"attractor": Attractor(), "accumulation": 1}, ""),
    "dreambooth": Case("dreambooth", {"rank": 2, "alpha": 2.0, "min_snr_gamma": 5.0}, "unet."),
    "dreambooth text": Case("dreambooth", {"rank": 2, "text_encoder": True, "conv": True}, ""),
    "custom_diffusion": Case("custom_diffusion", {}, ""),
    "custom_diffusion cached": Case(
        "custom_diffusion", {"augment": False, "flip": False, "train": "cross_attention"}, ""
    ),
    "dreambooth whole": Case("dreambooth", {"train": "unet", "learning_rate": 1e-4}, "unet."),
    "sdxl textual_inversion": Case("textual_inversion", {"num_vectors": 2, "max_norm": 1.5}, "rows", "sdxl"),
    "sdxl textual_inversion+": Case("textual_inversion", {"attractor": Attractor()}, "", "sdxl"),
    "sdxl dreambooth": Case("dreambooth", {"rank": 2, "text_encoder": True, "conv": True}, "", "sdxl"),
    "sdxl dreambooth whole": Case("dreambooth", {"train": "unet", "learning_rate": 1e-4}, "unet.", "sdxl"),
    "sdxl custom_diffusion": Case("custom_diffusion", {"augment": False, "flip": False}, "", "sdxl"),
}
METHOD_ROWS = ("textual_inversion", "dreambooth", "custom_diffusion")


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(params=METHOD_ROWS)
def method_case(request: pytest.FixtureRequest) -> Case:
    """One row per method, for what does not depend on its settings."""
    return CASES[request.param]


@pytest.fixture(params=[*METHOD_ROWS, *(f"sdxl {name}" for name in METHOD_ROWS)])
def family_case(request: pytest.FixtureRequest) -> Case:
    """One row per method and kind of model."""
    return CASES[request.param]


@pytest.fixture(scope="session")
def cases() -> Mapping[str, Case]:
    return CASES


@pytest.fixture(scope="session")
def bases(tiny_pipeline: Path, tiny_sdxl: Path) -> Mapping[str, BaseModel]:
    folders = {"sd": tiny_pipeline, "sdxl": tiny_sdxl}
    return {name: BaseModel(source=str(folder), device="cpu") for name, folder in folders.items()}


@pytest.fixture(scope="session")
def base(bases: Mapping[str, BaseModel]) -> BaseModel:
    return bases["sd"]


@pytest.fixture
def own_base(request: pytest.FixtureRequest, bases: Mapping[str, BaseModel]) -> BaseModel:
    """The base model of the test's case."""
    rows = [name for name in request.fixturenames if name.endswith("case")]
    return bases[request.getfixturevalue(rows[0]).model if rows else "sd"]


@pytest.fixture(scope="session")
def fingerprint() -> Callable[[Path], dict[str, str]]:
    """What two equal runs have in common, bit for bit: the result, the last state, the loss log."""

    def of(folder: Path) -> dict[str, str]:
        files = [*folder.glob("concept/*.safetensors"), folder / "history.jsonl", folder / "scores.jsonl"]
        state = newest_checkpoint(folder / "checkpoints")
        assert state is not None
        hashes = {file.name: hash_bytes(file.read_bytes()) for file in files if file.exists()}
        return hashes | {"state": hash_tensors(load_checkpoint(state)[0])}

    return of


@pytest.fixture(scope="session")
def finish() -> Callable[[Iterable[Any]], Done]:
    """Run to the end; the last event."""

    def run(events: Iterable[Any]) -> Done:
        last = list(events)[-1]
        assert isinstance(last, Done)
        return last

    return run


@pytest.fixture(scope="session")
def stop_after() -> Callable[[Any, int], None]:
    """Interrupt a run once so many steps are finished."""

    def stop(events: Any, steps: int) -> None:
        for event in events:
            if isinstance(event, Step) and event.step == steps:
                events.close()
                return
        raise AssertionError("the run ended before")

    return stop


@pytest.fixture(scope="session")
def undisturbed(bases, subject, tmp_path_factory, finish):
    """A finished run of each case, made once."""
    done: dict[str, Done] = {}

    def of(case: Case) -> Done:
        name = f"{case.model} {case.method} {sorted(case.small.items())}"
        if name not in done:
            events = case.events(bases[case.model], subject, tmp_path_factory.mktemp("runs"))
            done[name] = finish(events)
        return done[name]

    return of
