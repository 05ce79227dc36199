"""Runs that were interrupted, killed or lied to, against runs in one go: bit for bit, and with teeth."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from likeness.benchmarks import exactness
from likeness.core import checkpoint, randomness
from likeness.trainers import data, loop
from likeness.trainers.events import Step

from .conftest import CASES

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def base(own_base):
    return own_base


@pytest.fixture(scope="module")
def processes(tiny_pipeline, tmp_path_factory):
    """Started together and early: one in peace, two that kill themselves."""

    def job(method, **changes):
        folder = str(tmp_path_factory.mktemp("exact"))
        return exactness.Job(
            method, str(tiny_pipeline), folder, {"steps": 6, "checkpoint_every": 2}, **changes
        )

    jobs = {
        "fresh": job("textual_inversion"),
        "killed at a step": job("textual_inversion", kill_at_event=10),
        "killed in a write": job("dreambooth", kill_at_write=2),
    }
    started = {name: (job, exactness.start(job, hash_seed=7)) for name, job in jobs.items()}
    yield started
    for _, process in started.values():
        process.kill()
        process.wait()


def interrupted(case, base, subject, root, stop_after, finish, steps=3):
    """A run that was interrupted after so many steps and went on; its folder, and the first step it redid."""
    stop_after(case.events(base, subject, root), steps)
    events = list(case.events(base, subject, root))
    redone = [e.step for e in events if isinstance(e, Step)]
    return finish(events).run_folder, redone[0]


def test_interrupt_and_resume_is_exact(
    case, base, subject, tmp_path, undisturbed, fingerprint, stop_after, finish, processes
):
    folder, first = interrupted(case, base, subject, tmp_path, stop_after, finish)
    assert first == 4  # an interrupt loses nothing
    assert fingerprint(folder) == fingerprint(undisturbed(case).run_folder)


def test_interrupting_again_and_again_is_exact(
    method_case, base, subject, tmp_path, undisturbed, fingerprint, stop_after, finish
):
    for steps in (1, 2, 5):
        stop_after(method_case.events(base, subject, tmp_path), steps)
    done = finish(method_case.events(base, subject, tmp_path))
    assert fingerprint(done.run_folder) == fingerprint(undisturbed(method_case).run_folder)


# --- teeth: each defect, planted, must make that comparison fail ------------------------------------


def forget_optimizer(monkeypatch):
    def load(path):
        tensors, state = checkpoint.load_checkpoint(path)
        return {n: torch.zeros_like(t) if n.startswith("adamw") else t for n, t in tensors.items()}, state

    monkeypatch.setattr(loop, "load_checkpoint", load)


def forget_schedule(monkeypatch):
    started: list[int] = []

    def rate(config, step):
        started.append(step)
        return loop_rate(config, step - started[0])

    loop_rate = loop.learning_rate
    monkeypatch.setattr(loop, "learning_rate", rate)


def forget_rng(monkeypatch):
    state = torch.Generator().manual_seed(0)
    monkeypatch.setattr(data, "normal", lambda shape, *stream: torch.randn(shape, generator=state))


def forget_data_position(monkeypatch):
    started: list[int] = []
    walk = data.shuffled

    def from_the_start(things, batch, index, *rest):
        started.append(index)
        return walk(things, batch, index - started[0], *rest)

    for module in ("data", "dreambooth", "custom_diffusion"):
        monkeypatch.setattr(f"likeness.trainers.{module}.shuffled", from_the_start)


DEFECTS = {
    "no optimizer state": forget_optimizer,
    "no schedule state": forget_schedule,
    "no RNG": forget_rng,
    "no data position": forget_data_position,
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_comparison_has_teeth(
    method_case, base, subject, tmp_path, monkeypatch, fingerprint, stop_after, finish, defect
):
    """One run in one go and one that was resumed, both with the defect, each "process" with it anew."""
    with monkeypatch.context() as process:
        DEFECTS[defect](process)
        whole = finish(method_case.events(base, subject, tmp_path / "whole"))
    with monkeypatch.context() as process:
        DEFECTS[defect](process)
        stop_after(method_case.events(base, subject, tmp_path / "resumed"), 3)
    with monkeypatch.context() as process:
        DEFECTS[defect](process)
        resumed = finish(method_case.events(base, subject, tmp_path / "resumed"))
    assert fingerprint(resumed.run_folder) != fingerprint(whole.run_folder)


def torn(path):
    path.write_bytes(path.read_bytes()[:-100])


def test_a_torn_checkpoint_is_passed_over(
    method_case, base, subject, tmp_path, undisturbed, fingerprint, stop_after, finish
):
    stop_after(method_case.events(base, subject, tmp_path), 5)
    folder = next(tmp_path.glob("*/checkpoints"))
    torn(checkpoint.checkpoint_path(folder, 5))
    events = list(method_case.events(base, subject, tmp_path))
    assert next(e.step for e in events if isinstance(e, Step)) == 5  # from the checkpoint after 4
    assert fingerprint(finish(events).run_folder) == fingerprint(undisturbed(method_case).run_folder)


def test_a_torn_checkpoint_that_is_accepted_shows(
    method_case, base, subject, tmp_path, monkeypatch, undisturbed, fingerprint, stop_after, finish
):
    """Accepted with what can be read of it: the last tensors are lost."""
    stop_after(method_case.events(base, subject, tmp_path), 5)

    def lenient(path):
        tensors, state = checkpoint.load_checkpoint(path)
        last = max(n for n in tensors if n.startswith("param."))
        return {**tensors, last: torch.zeros_like(tensors[last])}, state

    monkeypatch.setattr(loop, "load_checkpoint", lenient)
    done = finish(method_case.events(base, subject, tmp_path))
    assert fingerprint(done.run_folder) != fingerprint(undisturbed(method_case).run_folder)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_kill_within_a_write_costs_no_earlier_checkpoint(
    base, subject, tmp_path, monkeypatch, method_case, in_place, stop_after
):
    """Step 4's write dies halfway. Written atomically, step 2 is there to go on from; in place, nothing."""
    one_file = {"checkpoint_path": lambda folder, step: folder / "step_00000001.safetensors"}

    def die_in_write(path, tensors, state):
        if state["step"] < 4:
            return checkpoint.save_checkpoint(path, tensors, state)
        if in_place:
            torn(path)
        raise KeyboardInterrupt  # the process is gone: no clean-up of the loop may write

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", die_in_write)
        for name, value in one_file.items() if in_place else ():
            patch.setattr(loop, name, value)
        with pytest.raises(KeyboardInterrupt):
            list(method_case.events(base, subject, tmp_path))
    events = method_case.events(base, subject, tmp_path)
    first = next(e.step for e in events if isinstance(e, Step))
    events.close()
    assert first == (1 if in_place else 3)


# --- golden curves ----------------------------------------------------------------------------------


def test_the_loss_curve_is_the_golden_one(method_case, base, subject, tmp_path):
    """20 steps. A refactor that moves it changes numbers: raise run.NUMERICS_VERSION and say why."""
    events = method_case.events(base, subject, tmp_path, steps=20, checkpoint_every=20)
    losses = [e.loss for e in events if isinstance(e, Step)]
    golden = json.loads((GOLDEN / f"{method_case.method}.json").read_text())
    assert len(golden) == 20
    assert all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(losses, golden, strict=True)), losses


@pytest.mark.parametrize("name", ["textual_inversion+", "neti", "neti+"])
def test_the_first_steps_are_the_golden_ones(name, undisturbed):
    """UPDATE_GOLDEN=1 rewrites the file."""
    history = (undisturbed(CASES[name]).run_folder / "history.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in history]
    path = GOLDEN / f"{name.replace('+', '_plus')}.json"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(json.dumps(losses, indent=0) + "\n")
    golden = json.loads(path.read_text())
    assert all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(losses, golden, strict=True)), losses


def test_draws_are_functions_of_seed_purpose_and_index():
    assert data.shuffled([0, 1, 2], 2, 5, 0, "photo") == data.shuffled([0, 1, 2], 2, 5, 0, "photo")
    assert not torch.equal(randomness.normal((4,), 0, "noise", 1), randomness.normal((4,), 0, "noise", 2))


# --- real processes: last, since they had the time of all the others to work ------------------------


def alive(job, **changes):
    return replace(job, kill_at_event=0, kill_at_write=0, **changes)


def here(job, tmp_path):
    return exactness.fingerprint(exactness.do(alive(job, folder=str(tmp_path))))


def test_a_fresh_process_makes_the_same_bytes(processes, tmp_path):
    job, process = processes["fresh"]
    assert exactness.outcome(process) == here(job, tmp_path)


@pytest.mark.parametrize("name", ["killed at a step", "killed in a write"])
def test_a_killed_process_goes_on_exactly(processes, tmp_path, name):
    job, process = processes[name]
    assert exactness.outcome(process) is None  # it really died
    runs = Path(job.folder) / "runs"
    assert not list(runs.glob("*/done.json")) and list(runs.glob("*/checkpoints/step_*.safetensors"))
    assert exactness.fingerprint(exactness.do(alive(job))) == here(job, tmp_path)
    assert not list(runs.glob("*/checkpoints/.*"))  # what the killed writer left is gone
