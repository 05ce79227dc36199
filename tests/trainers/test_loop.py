"""The loop's own parts: schedule, accumulation, clipping, settings, samples, checkpoints, interrupts."""

import json

import pytest
import torch
from likeness.core.errors import LikenessError, RunLocked
from likeness.trainers.events import Checkpoint, Phase, Sample, Step
from likeness.trainers.loop import SAMPLE_PROMPTS, in_training_mode, learning_rate
from likeness.trainers.method import LoopConfig
from PIL import Image


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.8535533905932737, 0.5, 0.14644660940672627]),
    ],
)
def test_the_schedule_by_hand(schedule, expected):
    config = LoopConfig(steps=6, warmup_steps=2, learning_rate=1.0, schedule=schedule)
    assert [learning_rate(config, step) for step in range(6)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0), ("batch_size", 0), ("accumulation", 0), ("checkpoint_every", 0),
        ("keep_checkpoints", 0), ("learning_rate", 0.0), ("learning_rate", float("nan")),
        ("warmup_steps", -1), ("sample_every", -1), ("max_grad_norm", -1.0), ("weight_decay", -0.1),
        ("schedule", "sawtooth"),
    ],
)  # fmt: skip
def test_impossible_settings_are_named(name, value):
    with pytest.raises(LikenessError, match=name):
        LoopConfig(**{name: value})


def test_the_log_is_what_the_events_say(method_case, base, subject, tmp_path):
    events = list(method_case.events(base, subject, tmp_path))
    steps = [e for e in events if isinstance(e, Step)]
    lines = [json.loads(line) for line in (events[-1].run_folder / "history.jsonl").read_text().splitlines()]
    assert [(r["step"], r["loss"], r["lr"], r["grad_norm"], r["terms"]) for r in lines] == [
        (e.step, e.loss, e.lr, e.grad_norm, dict(e.terms)) for e in steps
    ]
    assert [e.lr for e in steps] == pytest.approx(
        [learning_rate(method_case.config(), step) for step in range(6)]
    )


def test_clipping_bounds_the_update_and_not_the_log(method_case, base, subject, tmp_path):
    """SGD would shrink with the gradient; Adam's first moment shows it."""
    tight = list(method_case.events(base, subject, tmp_path, steps=1, max_grad_norm=1e-6))
    free = list(method_case.events(base, subject, tmp_path, steps=1, max_grad_norm=0.0))
    norms = [next(e.grad_norm for e in events if isinstance(e, Step)) for events in (tight, free)]
    assert norms[0] == norms[1] > 1e-6
    from likeness.core.checkpoint import load_checkpoint, newest_checkpoint

    def momentum(done):
        tensors, _ = load_checkpoint(newest_checkpoint(done.run_folder / "checkpoints"))
        parts = [t.flatten() for name, t in tensors.items() if name.startswith("adamw.exp_avg.")]
        return torch.cat(parts).norm().item()

    assert momentum(tight[-1]) == pytest.approx(0.1 * 1e-6, rel=1e-2)  # (1 - beta1) * clipped gradient
    assert momentum(free[-1]) == pytest.approx(0.1 * norms[1], rel=1e-3)


def test_samples_are_drawn_once_and_disturb_nothing(
    method_case, base, subject, tmp_path, undisturbed, stop_after
):
    changes = {"sample_every": 3, "sample_steps": 2}
    stop_after(method_case.events(base, subject, tmp_path, **changes), 4)
    events = list(method_case.events(base, subject, tmp_path, **changes))
    samples = [e for e in events if isinstance(e, Sample)]
    assert [e.step for e in samples] == [6]
    assert len(samples[0].paths) == len(SAMPLE_PROMPTS)
    names = sorted(path.name for path in (events[-1].run_folder / "samples").iterdir())
    assert names == [f"step-{s:06d}-{i}.png" for s in (0, 3, 6) for i in range(4)]
    with Image.open(samples[0].paths[0]) as image:
        assert image.size == (64, 64)
    first = undisturbed(method_case).run_folder / "history.jsonl"
    assert (events[-1].run_folder / "history.jsonl").read_bytes() == first.read_bytes()


def test_old_checkpoints_go(method_case, base, subject, tmp_path, stop_after):
    events = method_case.events(base, subject, tmp_path, checkpoint_every=1, keep_checkpoints=2)
    kept = []
    for event in events:
        if isinstance(event, Checkpoint):
            kept = sorted(path.name for path in event.path.parent.glob("step_*"))
    assert kept == ["step_00000005.safetensors", "step_00000006.safetensors"]


def test_an_exception_thrown_in_at_a_yield_saves_too(method_case, base, subject, tmp_path):
    events = method_case.events(base, subject, tmp_path)
    for event in events:
        if isinstance(event, Step) and event.step == 3:
            break
    with pytest.raises(KeyboardInterrupt):
        events.throw(KeyboardInterrupt())
    assert list(tmp_path.glob("*/checkpoints/step_00000003.safetensors"))


def test_an_interrupt_before_the_first_step_leaves_no_checkpoint(method_case, base, subject, tmp_path):
    events = method_case.events(base, subject, tmp_path)
    assert isinstance(next(events), Phase)
    events.close()
    assert not list(tmp_path.glob("*/checkpoints/*"))


def test_two_runs_do_not_share_a_folder(method_case, base, subject, tmp_path, stop_after):
    first = method_case.events(base, subject, tmp_path)
    for event in first:
        if isinstance(event, Step):
            break
    with pytest.raises(RunLocked):
        list(method_case.events(base, subject, tmp_path))
    first.close()
    assert list(method_case.events(base, subject, tmp_path))[-1].best_step == 6


def test_work_is_out_of_inference_mode_and_the_consumer_stays_in_it():
    seen = []

    def work():
        for _ in range(2):
            seen.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
            yield
        seen.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))

    with torch.inference_mode():
        for _ in in_training_mode(work()):
            assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
    assert seen == [(False, True)] * 3


def test_words_may_learn_faster_than_weights(base, subject, tmp_path):
    """One learning rate in the log; a factor of it for the tensors that the method says."""
    from likeness.core.checkpoint import load_checkpoint, newest_checkpoint
    from likeness.trainers.custom_diffusion import CustomDiffusionConfig, train_custom_diffusion

    moved = {}
    for factor in (1.0, 20.0):
        config = CustomDiffusionConfig.practical(
            "toybox", steps=1, batch_size=1, learning_rate=1e-4, token_rate=factor, checkpoint_every=1
        )
        root = tmp_path / str(factor)
        *_, done = train_custom_diffusion(base, subject, config, runs_root=root)
        tensors, _ = load_checkpoint(newest_checkpoint(done.run_folder / "checkpoints"))
        moved[factor] = {n: t for n, t in tensors.items() if n.startswith("param.")}
    rows = [name for name in moved[1.0] if name.startswith("param.rows.")]
    weights = [name for name in moved[1.0] if name not in rows]
    assert rows and weights and all(torch.equal(moved[1.0][n], moved[20.0][n]) for n in weights)
    assert all((moved[20.0][n] - moved[1.0][n]).abs().max() == pytest.approx(19e-4, rel=0.01) for n in rows)
