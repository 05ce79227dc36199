"""The Ray target against a stand-in that has Ray's calls; Ray itself is an optional package."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from likeness.core.errors import Interrupted, LikenessError, MissingPackage
from likeness.headless.batch.embedded import Folders
from likeness.headless.batch.on_ray import OnRay
from likeness.headless.batch.targets import JobFailed, SlotLost, Task
from likeness_stubs import CLASSES


def errors() -> SimpleNamespace:
    base = type("RayError", (Exception,), {})
    names = ("RayTaskError", "TaskCancelledError", "WorkerCrashedError")
    return SimpleNamespace(RayError=base, **{name: type(name, (base,), {}) for name in names})


class StandIn:
    """Runs a task when its result is asked for; ``trouble`` is raised instead."""

    def __init__(self) -> None:
        self.exceptions, self.trouble = errors(), ""
        self.asked: dict[str, Any] = {}
        self.cancelled: list[Any] = []

    def init(self, **options: Any) -> None:
        if options["address"] != "local":
            raise ConnectionError("no cluster")

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 8.0, "GPU": 2.0}

    def remote(self, function: Any) -> Any:
        def options(**asked: Any) -> Any:
            self.asked = asked
            return SimpleNamespace(remote=lambda *values: (function, values))

        return SimpleNamespace(options=options)

    def get(self, call: Any) -> Any:
        if self.trouble:
            raise getattr(self.exceptions, self.trouble)("trouble")
        return call[0](*call[1])

    def cancel(self, call: Any) -> None:
        self.cancelled.append(call)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "ray", stand_in)  # type: ignore[arg-type]
    return stand_in


def target(tmp_path: Path, **options: Any) -> OnRay:
    return OnRay(Folders(output=tmp_path, input=tmp_path), nodes=lambda: CLASSES, **options)


def task(text: str = "x") -> Task:
    inputs = {"text": text} if text else {"text": "", "wrong": 1}
    return Task(number=1, key="k", ticket="t", prompt={"1": {"class_type": "Say", "inputs": inputs}})


def test_tasks_ask_for_their_share_and_fill_the_cluster(ray: StandIn, tmp_path: Path) -> None:
    assert len(target(tmp_path, cpus=2).open()) == 4
    assert len(target(tmp_path, cpus=1, gpus=0.5).open()) == 4
    assert ray.asked == {"num_cpus": 1, "num_gpus": 0.5, "max_retries": 0}
    assert len(target(tmp_path, workers=3).open()) == 3
    with pytest.raises(LikenessError, match="asks for 1 CPUs and 4 GPUs"):
        target(tmp_path, gpus=4).open()
    with pytest.raises(LikenessError, match="There is no Ray at 'head:6379'"):
        target(tmp_path, address="head:6379").open()


def test_a_job_runs_in_a_task(ray: StandIn, tmp_path: Path) -> None:
    slot = target(tmp_path).open()[0]
    assert slot.run(task(), lambda words: None).made == []
    with pytest.raises(JobFailed, match="has no input wrong") as caught:
        slot.run(task(""), lambda words: None)
    assert not caught.value.again


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [("WorkerCrashedError", SlotLost), ("TaskCancelledError", Interrupted), ("RayTaskError", JobFailed)],
)
def test_what_ray_says_becomes_what_the_batch_knows(
    ray: StandIn, tmp_path: Path, trouble: str, kind: type[Exception]
) -> None:
    ray.trouble = trouble
    slot = target(tmp_path).open()[0]
    with pytest.raises(kind):
        slot.run(task(), lambda words: None)
    assert slot.revive()


def test_without_ray_its_name_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackage, match="--ray needs the package ray"):
        target(tmp_path)
