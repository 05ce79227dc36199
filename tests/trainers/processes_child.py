"""Trainings for test_processes.py: alone when imported, in one of several processes when run as a program.

python processes_child.py PIPELINE FOLDER        with RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT set
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from likeness.backbones.base import BaseModel
from likeness.concepts.loading import load_concept
from likeness.core.checkpoint import load_checkpoint, newest_checkpoint
from likeness.core.errors import LikenessError
from likeness.core.hashing import hash_tensors
from likeness.scoring.rewards import RewardSpec
from likeness.subjects import from_images
from likeness.subjects.prompt_pool import PromptPool
from likeness.trainers import METHODS, processes
from likeness.trainers.attractor import Attractor
from likeness.trainers.events import Done, Step
from likeness.trainers.prior import PriorPreservation
from likeness.trainers.textual_inversion import TextualInversion

COMMON = {"steps": 3, "batch_size": 4, "learning_rate": 1e-3, "checkpoint_every": 2}
PRIOR = PriorPreservation(num_images=4, steps=2, batch_size=4)
# name: (method, settings). Rows of a batch are shared, or whole forwards where there are several.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "textual inversion": ("textual_inversion", {"num_vectors": 2}),
    "attractor, two forwards": ("textual_inversion", {"attractor": Attractor(), "accumulation": 2}),
    "neti": ("neti", {"accumulation": 1}),
    "neti, two forwards": ("neti", {"accumulation": 2}),
    "dreambooth": ("dreambooth", {"rank": 2, "min_snr_gamma": 5.0}),
    "dreambooth, whole": ("dreambooth", {"train": "unet"}),
    "custom diffusion": ("custom_diffusion", {}),
}
WITH_PRIOR = ("dreambooth", "custom diffusion")
REWARD = RewardSpec(name="toybox_preference")
POOL = PromptPool(activities=("playing", "sitting"))
ALIGN: dict[str, tuple[str, dict[str, Any]]] = {
    "align": (
        "align",
        {"steps": 2, "denoising_steps": 3, "images_per_epoch": 4, "images_per_prompt": 2, "batch_size": 2,
         "rows_per_forward": 2, "rollout_batch": 4, "learning_rate": 1e-3, "rank": 2, "min_count": 2},
    ),
    "reward gradient": (
        "reward_gradient",
        {"steps": 2, "denoising_steps": 3, "batch_size": 4, "rank": 2, "window": 2, "learning_rate": 1e-3},
    ),
}  # fmt: skip


class World:
    """A subject, a model, and a folder for runs."""

    def __init__(self, pipeline: Path, folder: Path) -> None:
        images_BHWC = torch.rand(4, 64, 64, 3, generator=torch.Generator().manual_seed(5))
        masks_BHW = torch.zeros(4, 64, 64)
        masks_BHW[:, 16:48, 8:40] = 1.0
        photos = folder / "photos"
        self.subject = from_images(images_BHWC, photos, masks=masks_BHW, class_noun="fish", name="finn")
        self.base, self.folder = BaseModel(source=str(pipeline), device="cpu"), folder

    def events(self, name: str, root: str = "runs", **changes: Any) -> Iterator[Any]:
        method, settings = CASES[name]
        config = METHODS[method].config(**{**COMMON, **settings, **changes})
        prior = {"prior": PRIOR} if name in WITH_PRIOR else {}
        return METHODS[method].train(self.base, self.subject, config, runs_root=self.folder / root, **prior)

    def aligning(self, name: str, concept: Any) -> Iterator[Any]:
        method, settings = ALIGN[name]
        config = METHODS[method].config(**settings)
        return METHODS[method].train(
            self.base, self.subject, config,
            concepts=[(concept, 1.0)], pool=POOL, reward=REWARD, runs_root=self.folder / "runs",
        )  # fmt: skip


def finished(events: Iterator[Any]) -> Done:
    *_, last = events
    assert isinstance(last, Done)
    return last


def learn_all(world: World, concept: Path) -> dict[str, str]:
    """Every case's run folder. ``concept``: what is aligned."""
    done = {name: finished(world.events(name)) for name in CASES}
    done |= {name: finished(world.aligning(name, load_concept(concept))) for name in ALIGN}
    return {name: str(one.run_folder) for name, one in done.items()}


def state_of(folder: str | Path) -> dict[str, torch.Tensor]:
    newest = newest_checkpoint(Path(folder) / "checkpoints")
    assert newest is not None
    return load_checkpoint(newest)[0]


def resumed(world: World, name: str) -> str:
    """The same run, interrupted after every step."""
    for step in (1, 2):
        events = world.events(name, "interrupted")
        for event in events:
            if isinstance(event, Step) and event.step == step:
                events.close()
                break
    return str(finished(world.events(name, "interrupted")).run_folder)


def error_of(events: Iterator[Any]) -> str:
    try:
        finished(events)
    except LikenessError as error:
        return str(error)
    return ""


def lead(world: World, concept: Path) -> dict[str, Any]:
    """What the first of the processes does. After an error the others are ready for the next training."""
    found: dict[str, Any] = {"runs": learn_all(world, concept), "size": processes.size()}
    names = ("dreambooth", "neti, two forwards")
    found["resumed"] = {n: hash_tensors(state_of(resumed(world, n))) for n in names}
    found["uneven"] = error_of(world.events("textual inversion", "uneven", batch_size=3))
    found["coupled"] = error_of(
        world.events("attractor, two forwards", "coupled", accumulation=1, batch_size=4)
    )
    found["broken"] = error_of(world.events("textual inversion", "broken", num_vectors=3))
    found["after"] = str(finished(world.events("textual inversion", "after")).run_folder)
    return found


def break_in_the_other() -> None:
    """Three vectors are more than it can take."""
    loss = TextualInversion.loss

    def broken(self: TextualInversion, batch: Any) -> Any:
        if self.config.num_vectors == 3:
            raise RuntimeError("the other one broke")
        return loss(self, batch)

    TextualInversion.loss = broken  # type: ignore[method-assign]


def vanish_in_a_step() -> None:
    def vanish(self: TextualInversion, batch: Any) -> Any:
        os._exit(9)

    TextualInversion.loss = vanish  # type: ignore[method-assign]


def main(pipeline: str, folder: str, act: str, concept: str = "") -> int:
    rank = os.environ["RANK"]
    if rank == "1" and act == "all":
        break_in_the_other()
    if rank == "1" and act == "lost":
        vanish_in_a_step()

    def work(several: bool) -> int:
        assert several
        world = World(Path(pipeline), Path(folder))
        if act == "all":
            found = lead(world, Path(concept))
        else:
            found = {act: error_of(world.events("textual inversion"))}
        (Path(folder) / "found.json").write_text(json.dumps(found))
        return 0

    code = processes.led_by(work)
    left = [name for name in threads() if name.startswith("pt_")]  # as torch names those of a group
    sys.stderr.write(f"Threads of the group: {left}\n")
    return code


def threads() -> list[str]:
    """The names of this process's threads, where the system tells them."""
    tasks = Path("/proc/self/task")
    return [(task / "comm").read_text().strip() for task in tasks.iterdir()] if tasks.exists() else []


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
