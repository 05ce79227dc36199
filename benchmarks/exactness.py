"""Exactness: equal bytes from fresh processes, and from runs that were killed and went on.

The same settings in three fresh processes, each with another hash seed: byte-identical artifact. ``kill -9``
at random steps and inside a checkpoint's write, then resumed: identical weights, optimizer moments and loss
log. Neighbours that draw random numbers between the steps change nothing.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from . import bar

SEED = 3
SETTINGS = {
    "steps": 12,
    "batch_size": 2,
    "learning_rate": 1e-2,
    "schedule": "cosine",
    "warmup_steps": 2,
    "checkpoint_every": 3,
}
METHOD_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "textual_inversion": {"num_vectors": 2},
    "textual_inversion+": {},  # with an attractor
    "neti": {},
    "neti+": {},
    "dreambooth": {"rank": 2, "alpha": 2.0, "min_snr_gamma": 5.0},
}


@dataclass(frozen=True)
class Job:
    """One run in one process, and how that process is to die."""

    method: str
    source: str  # of the base model
    folder: str  # runs and photos go here
    settings: Mapping[str, Any]
    kill_at_event: int = 0  # after so many events, by SIGKILL; 0: never
    kill_at_write: int = 0  # in the middle of writing the Nth checkpoint
    neighbour: bool = False  # draws random numbers between the events


def do(job: Job) -> Path:
    """Run the job in this process; the run's folder."""
    import torch

    from ..backbones.base import BaseModel
    from ..subjects import from_images
    from ..trainers import METHODS
    from ..trainers.attractor import Attractor
    from ..trainers.events import Done

    folder = Path(job.folder)
    images_BHWC = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(5))
    masks_BHW = torch.zeros(3, 64, 64)
    masks_BHW[:, 16:48, 8:40] = 1.0
    subject = from_images(images_BHWC, folder / "photos", masks=masks_BHW, class_noun="fish", name="finn")
    entry = METHODS[job.method.removesuffix("+")]
    own = {"attractor": Attractor()} if job.method.endswith("+") else {}
    config = entry.config(**{**SETTINGS, **METHOD_SETTINGS[job.method], **own, **job.settings})
    if job.kill_at_write:
        _die_in_write(job.kill_at_write)
    base = BaseModel(source=job.source, device="cpu")
    event: object = None
    for number, event in enumerate(entry.train(base, subject, config, runs_root=folder / "runs", seed=SEED)):  # noqa: B007
        if number + 1 == job.kill_at_event:
            os.kill(os.getpid(), signal.SIGKILL)
        if job.neighbour:
            torch.manual_seed(number)
            torch.randn(number + 1)
    assert isinstance(event, Done)
    return event.run_folder


def _die_in_write(number: int) -> None:
    """Arrange for SIGKILL halfway through the Nth checkpoint file."""
    from ..core import paths

    seen = {"temp created": 0}

    def save_point(name: str) -> None:
        if name == "temp created":
            seen[name] += 1
        # run.json is the first atomic file of a run, the checkpoints follow it
        if name == "writing" and seen["temp created"] == number + 1:
            os.kill(os.getpid(), signal.SIGKILL)

    paths.save_point = save_point


def fingerprint(folder: Path) -> dict[str, str]:
    """What two equal runs have in common, bit for bit."""
    from ..core.checkpoint import load_checkpoint, newest_checkpoint
    from ..core.hashing import hash_bytes, hash_tensors

    state = newest_checkpoint(folder / "checkpoints")
    assert state is not None
    concepts = sorted(folder.glob("concept/*.safetensors"))
    return {
        "artifact": hash_bytes(b"".join(path.read_bytes() for path in concepts)),
        "history": hash_bytes((folder / "history.jsonl").read_bytes()),
        "state": hash_tensors(load_checkpoint(state)[0]),
    }


def start(job: Job, *, hash_seed: int = 0) -> subprocess.Popen[str]:
    """The job in a fresh process, which prints the run's fingerprint when it lives to."""
    env = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, json.dumps(asdict(job))]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def outcome(process: subprocess.Popen[str]) -> dict[str, str] | None:
    """The fingerprint that the process printed, or None when it was killed. Other ends raise."""
    out, _ = process.communicate()
    if process.returncode == -signal.SIGKILL:
        return None
    if process.returncode:
        raise RuntimeError(f"the job ended with {process.returncode}")
    found: dict[str, str] = json.loads(out.splitlines()[-1])
    return found


def main(text: str) -> None:
    folder = do(Job(**json.loads(text)))
    sys.stdout.write("\n" + json.dumps(fingerprint(folder)) + "\n")


def run(quick: bool) -> dict[str, Any]:
    """Every method, on Toybox: how many runs were equal, of how many. Some minutes; quick: about two."""
    counts = {method: _counts(method, quick) for method in METHOD_SETTINGS}
    return {
        "numbers": {
            method: {test: f"{equal} of {num}" for test, (equal, num) in tests.items()}
            for method, tests in counts.items()
        },
        "bars": [
            bar(f"{test}, {method}", value=equal / num, op="==", bar=1.0)
            for method, tests in counts.items()
            for test, (equal, num) in tests.items()
        ],
        "seeds": [SEED],
    }


def _counts(method: str, quick: bool) -> dict[str, tuple[int, int]]:
    """Runs that were equal to the reference, and how many there were, by test."""
    dice = random.Random(f"exactness {method}")
    with tempfile.TemporaryDirectory() as scratch:
        jobs = (Job(method, "toybox", f"{scratch}/{i}", {}) for i in range(1000))
        reference = _finished(next(jobs), 0)
        fresh = [_finished(next(jobs), seed) for seed in ((1,) if quick else (1, 2))]
        neighbours = [_finished(replace(next(jobs), neighbour=True), 3)]
        kills = [replace(next(jobs), kill_at_event=dice.randint(8, 20)) for _ in range(1 if quick else 4)]
        kills += [replace(next(jobs), kill_at_write=number) for number in ((2,) if quick else (2, 3))]
        resumed = [_killed_and_resumed(job) for job in kills]

    found = {"fresh processes": fresh, "kill -9 and resume": resumed, "neighbours": neighbours}
    return {test: (sum(one == reference for one in runs), len(runs)) for test, runs in found.items()}


def _finished(job: Job, hash_seed: int) -> dict[str, str]:
    found = outcome(start(job, hash_seed=hash_seed))
    assert found is not None
    return found


def _killed_and_resumed(job: Job) -> dict[str, str]:
    if outcome(start(job)) is not None:
        raise RuntimeError("the process was to be killed and lived")
    return _finished(replace(job, kill_at_event=0, kill_at_write=0), hash_seed=9)


if __name__ == "__main__":
    main(sys.argv[1])
