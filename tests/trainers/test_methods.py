"""What every method must do. A method joins with one row of ``conftest.CASES``."""

import itertools

import numpy as np
import pytest
import torch
from likeness.backbones import open_backbone
from likeness.concepts.loading import load_concept, load_tensors
from likeness.concepts.words import joined_rows, split_words
from likeness.core.checkpoint import load_checkpoint, newest_checkpoint
from likeness.core.errors import LikenessError, NonFiniteLoss
from likeness.core.hashing import hash_tensors
from likeness.trainers import METHODS, loop
from likeness.trainers.events import Checkpoint, Done, Phase, Step


@pytest.fixture
def base(own_base):
    return own_base


def weights(base):
    backbone = open_backbone(base)
    return [hash_tensors(backbone.module(part).state_dict()) for part in backbone.parts]


def hooks(base):
    backbone = open_backbone(base)
    modules = [module for part in backbone.parts for module in backbone.module(part).modules()]
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


def test_a_run_tells_its_story(case, base, subject, tmp_path):
    events = list(case.events(base, subject, tmp_path))
    assert isinstance(events[0], Phase) and isinstance(events[-1], Done)
    assert [e.step for e in events if isinstance(e, Step)] == [1, 2, 3, 4, 5, 6]
    assert [e.step for e in events if isinstance(e, Checkpoint)] == [2, 4, 6]
    assert {e.name for e in events if isinstance(e, Phase)} == {"loading", "caching"}
    assert events[-1].best_step == 6 and not events[-1].reused


def test_a_finished_run_returns_at_once(case, base, subject, undisturbed):
    first = undisturbed(case)
    again = list(case.events(base, subject, first.run_folder.parent))
    assert not any(isinstance(e, Step) for e in again)
    assert again[-1].reused and again[-1].concept == first.concept


def test_what_was_trained_is_what_is_in_the_file(case, base, undisturbed):
    done = undisturbed(case)
    tensors, state = load_checkpoint(newest_checkpoint(done.run_folder / "checkpoints"))
    trained = {name.removeprefix("param."): t for name, t in tensors.items() if name.startswith("param.")}
    assert trained and all(name.startswith(case.trained) for name in trained) and state["step"] == 6
    exported = load_tensors(load_concept(done.concept.path))
    if done.concept.kind == "embedding":
        encoders = open_backbone(base).text_widths
        assert set(exported) == set(encoders)
        assert torch.equal(torch.cat([exported[name] for name in encoders], dim=1), trained["rows"])
    if done.concept.kind == "neti":
        own = {name: t for name, t in trained.items() if name.startswith("mapper.")}
        assert own and all(torch.equal(exported[name.removeprefix("mapper.")], t) for name, t in own.items())
    if done.concept.kind == "lora":
        assert set(exported) == set(trained)
        assert all(torch.equal(exported[name], trained[name]) for name in trained)
    if done.concept.kind == "delta":
        before = open_backbone(base).module("unet").state_dict()
        rows = {name: t for name, t in trained.items() if name.startswith("rows.")}
        words, exported = split_words(exported)
        for name, tensor in rows.items():
            own = words.pop(name.removeprefix("rows."))
            assert torch.equal(joined_rows(own, open_backbone(base), file=""), tensor)
        assert not words
        for name, tensor in trained.items():
            if name in rows:
                continue
            torch.testing.assert_close(exported[name] + before[name.removeprefix("unet.")], tensor)


def test_every_trained_tensor_moved(case, base, undisturbed):
    """The first lora_A stays where it is only as long as lora_B is zero: for one step."""
    folder = undisturbed(case).run_folder / "checkpoints"
    tensors, _ = load_checkpoint(newest_checkpoint(folder))
    moments = {name: t for name, t in tensors.items() if name.startswith("adamw.exp_avg_sq.")}
    still = [name for name, t in moments.items() if not t.any()]
    assert moments and len(still) < 0.05 * len(moments)


def test_seed_and_settings_make_another_run(method_case, base, subject, tmp_path, undisturbed, finish):
    first = undisturbed(method_case)
    other = finish(method_case.events(base, subject, tmp_path, seed=1))
    assert other.concept.sha256 != first.concept.sha256
    assert other.run_folder.name != first.run_folder.name
    assert method_case.config() != method_case.config(learning_rate=2e-2)


@pytest.mark.parametrize("way_out", ["success", "interrupt", "error"])
def test_the_base_model_is_as_it_was(case, base, subject, tmp_path, monkeypatch, stop_after, way_out):
    before = weights(base)
    events = case.events(base, subject, tmp_path, steps=2)
    if way_out == "success":
        list(events)
    elif way_out == "interrupt":
        stop_after(events, 1)
    else:
        monkeypatch.setattr(loop.Loop, "clip", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(events)
    assert weights(base) == before
    assert hooks(base) == 0
    assert not any(p.requires_grad for p in open_backbone(base).module("unet").parameters())


def test_a_neighbour_neither_disturbs_nor_is_disturbed(
    method_case, base, subject, tmp_path, undisturbed, fingerprint
):
    events = method_case.events(base, subject, tmp_path)
    for number in itertools.count():
        torch.manual_seed(number)
        np.random.seed(number)
        state = torch.get_rng_state()
        with torch.inference_mode(number % 2 == 0):
            event = next(events, None)
            assert torch.is_inference_mode_enabled() == (number % 2 == 0)
        assert torch.equal(torch.get_rng_state(), state)
        torch.randn(number)
        if event is None:
            break
        last = event
    assert fingerprint(last.run_folder) == fingerprint(undisturbed(method_case).run_folder)


def test_a_loss_that_is_not_finite_stops_the_run(family_case, base, subject, tmp_path, monkeypatch):
    case = family_case
    module = METHODS[case.method].train.__module__
    name = {
        "textual_inversion": "denoising_loss",
        "dreambooth": "squared_error",
        "custom_diffusion": "masked_loss",
    }[case.method]
    where = "likeness.trainers.objectives" if case.method == "dreambooth" else module
    calls = itertools.count()

    def broken(pred, target, *rest, **options):
        value = (pred - target).square().flatten(1).mean(1)
        value = value * float("nan") if next(calls) == 6 else value  # two calls a step: in the fourth
        return value if name == "squared_error" else value.mean()

    monkeypatch.setattr(f"{where}.{name}", broken)
    with pytest.raises(NonFiniteLoss, match=r"step 4 of 6 the (denoising|instance)") as error:
        list(case.events(base, subject, tmp_path))
    assert "learning rate" in str(error.value)
    folder = next(tmp_path.glob(f"{case.method}-*"))
    tensors, state = load_checkpoint(newest_checkpoint(folder / "checkpoints"))
    assert state["step"] == 3 and all(t.isfinite().all() for t in tensors.values())
    assert len((folder / "history.jsonl").read_text().splitlines()) == 3
    assert not (folder / "done.json").exists()


def test_memory_that_ran_out_gives_advice(method_case, base, subject, tmp_path, monkeypatch, finish):
    def no_memory(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "accumulate", no_memory)
        with pytest.raises(LikenessError, match="batch_size") as error:
            list(method_case.events(base, subject, tmp_path))
    assert error.value.__context__ is None  # which would keep every tensor of the step alive
    assert finish(method_case.events(base, subject, tmp_path)).best_step == 6


def test_neti_says_that_sdxl_has_no_place_for_it(bases, cases, subject, tmp_path):
    for name in ("neti", "neti+"):
        with pytest.raises(LikenessError, match=r"NeTI.*Stable Diffusion XL"):
            list(cases[name].events(bases["sdxl"], subject, tmp_path))
    assert list(tmp_path.rglob("*.*")) == []


def test_no_photos_is_said(method_case, base, subject, tmp_path):
    from dataclasses import replace

    with pytest.raises(LikenessError, match="no photos"):
        list(method_case.events(base, replace(subject, photos=()), tmp_path))
    assert list(tmp_path.iterdir()) == []
