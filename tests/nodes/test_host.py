"""Driving a trainer: every event seen, the stop button heard, the iterator always closed."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from likeness import backbones
from likeness.concepts.concept import Concept
from likeness.core.errors import Interrupted, LikenessError
from likeness.nodes import host
from likeness.trainers.events import Done, Event, Phase, Sample, Step
from PIL import Image


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[host.Plain]:
    before = host.current
    own = host.Plain()
    own.place(output=tmp_path / "output")
    host.use(own)
    yield own
    host.use(before)


def step(number: int) -> Step:
    return Step(number, 50, 0.5, {}, 1e-4, 0.1, 0.01)


def done(folder: Path) -> Done:
    concept = Concept(
        kind="lora", path=folder / "x.safetensors", sha256="", trigger="", class_noun="", family="",
        base_hash="", metadata={},
    )  # fmt: skip
    return Done(concept, 50, folder, reused=False)


class Training:
    """An event source that records how it was treated."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.closed = False
        self.gradients: list[bool] = []

    def events(self) -> Iterator[Event]:
        try:
            for number in range(1, 51):
                self.gradients.append(torch.is_grad_enabled() and not torch.is_inference_mode_enabled())
                yield step(number)
            yield done(self.folder)
        finally:
            self.closed = True


def test_consume_gives_the_end_and_shows_everything(plain: host.Plain, tmp_path: Path) -> None:
    shown: list[Event] = []
    plain.listener = shown.append
    training = Training(tmp_path)
    assert host.consume(training.events()) == done(tmp_path)
    assert training.closed and len(shown) == 51


def test_training_leaves_the_inference_mode_of_the_host(plain: host.Plain, tmp_path: Path) -> None:
    training = Training(tmp_path)
    with torch.inference_mode():
        host.consume(training.events())
        assert torch.is_inference_mode_enabled()
    assert all(training.gradients)


def test_a_stop_closes_the_trainer_and_is_told(plain: host.Plain, tmp_path: Path) -> None:
    training = Training(tmp_path)
    plain.listener = lambda event: plain.stop.set() if isinstance(event, Step) and event.step == 7 else None
    with pytest.raises(Interrupted):
        host.consume(training.events())
    assert training.closed and len(training.gradients) == 7


def test_an_error_of_the_trainer_passes_through(plain: host.Plain) -> None:
    def broken() -> Iterator[Event]:
        yield step(1)
        raise LikenessError("NaN")

    with pytest.raises(LikenessError, match="NaN"):
        host.consume(broken())


def test_an_end_without_a_result_is_an_error(plain: host.Plain) -> None:
    with pytest.raises(LikenessError, match="without a result"):
        host.consume(iter([step(1)]))


def test_follow_gives_the_return_value(plain: host.Plain) -> None:
    def work() -> Generator[Event, None, int]:
        yield Phase("drawing", 1, 1)
        return 42

    assert host.follow(work()) == 42


class Slow(host.Plain):
    """As a page: few updates a second; remembers what it was shown."""

    updates_per_s = 4.0

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[tuple[Event, Any]] = []

    def show(self, event: Event, preview: Any) -> None:
        self.shown.append((event, preview))


def test_a_page_is_not_flooded_and_misses_no_end(
    plain: host.Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(host.time, "monotonic", lambda: now)
    slow = Slow()
    host.use(slow)

    def ten_steps_a_second() -> Iterator[Event]:
        nonlocal now
        for event in Training(tmp_path).events():
            now += 0.1
            yield event

    host.consume(ten_steps_a_second())
    steps = [event.step for event, _ in slow.shown if isinstance(event, Step)]
    assert steps[0] == 1 and steps[-1] == 50 and len(steps) <= 5 * 4 + 2
    assert isinstance(slow.shown[-1][0], Done)


def test_samples_become_one_preview(plain: host.Plain, tmp_path: Path) -> None:
    slow = Slow()
    host.use(slow)
    paths = [tmp_path / f"{n}.png" for n in range(5)]
    for path in paths:
        Image.new("RGB", (8, 6)).save(path)
    events = [step(1), Sample(1, ("p",) * 5, tuple(paths)), step(50), done(tmp_path)]
    host.consume(iter(events))
    previews = [preview for _, preview in slow.shown]
    assert previews[0] is None and previews[1].size == (4 * 8, 6)
    assert previews[2] is previews[1]  # it stays on the node


@pytest.mark.parametrize("ending", ["success", "error", "stop"])
def test_memory_is_given_back_whatever_happened(ending: str, plain: host.Plain, tmp_path: Path) -> None:
    class Crowded(host.Plain):
        given_back = 0

        def give_back(self) -> None:
            assert training.closed
            self.given_back += 1

    training, crowded = Training(tmp_path), Crowded()
    host.use(crowded)
    if ending == "stop":
        crowded.stop.set()

    def events() -> Iterator[Event]:
        for event in training.events():
            if ending == "error":
                training.closed = True
                raise LikenessError("NaN")
            yield event

    with contextlib.suppress(LikenessError, Interrupted):
        host.consume(events())
    assert crowded.given_back == 1


@pytest.mark.parametrize(("device", "kept"), [("cuda:0", False), ("cpu", True)])
def test_comfyui_gets_its_room_on_a_gpu(device: str, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[int] = []
    management = types.SimpleNamespace(
        get_torch_device=lambda: device, soft_empty_cache=lambda: emptied.append(1)
    )
    package = types.SimpleNamespace(model_management=management)
    monkeypatch.setitem(sys.modules, "comfy", package)
    monkeypatch.setitem(sys.modules, "comfy.model_management", management)
    monkeypatch.setattr(backbones, "_opened", {"key": object()})
    host.Comfy().give_back()
    assert bool(backbones._opened) is kept and bool(emptied) is not kept


def test_options_that_comfyui_does_not_know_are_dropped() -> None:
    def old(id: str, *, default: int = 0) -> tuple[str, int]:
        return id, default

    assert host.supported(old, "steps", default=3, advanced=True) == ("steps", 3)


def test_pictures_are_shown_below_the_output_folder(plain: host.Plain) -> None:
    path = plain.output / "likeness" / "runs" / "a.png"
    assert host.shown([path]) == [{"filename": "a.png", "subfolder": "likeness/runs", "type": "output"}]
