"""``likeness batch`` and ``likeness sweep`` from the command line to the report, on a real worker process."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from likeness.benchmarks.batch_jobs import wait_nodes
from likeness.headless import cli, runner
from likeness.headless.batch import command
from likeness.headless.batch.embedded import Embedded, Folders
from likeness.headless.batch.targets import JobFailed, Result, Task, Tell
from PIL import Image


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    (tmp_path / "input").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "input" / "a.png")
    load = {"class_type": "LoadImage", "inputs": {"image": "a.png"}}
    save = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "copy"}}
    write(tmp_path / "copy.json", {"1": load, "2": save})
    nothing = {"number": 0, "seconds": 0, "rounds": 0}
    write(tmp_path / "wait.json", {"1": {"class_type": "Wait", "inputs": nothing}})
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)


def write(path: Path, data: Any) -> str:
    path.write_text(json.dumps(data))
    return str(path)


def results(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (folder / "output" / "likeness" / "batches" / name / "results.json").read_text()
    )
    return found


def test_a_grid_runs_once_and_a_larger_one_adds_only_what_is_new(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = write(folder / "g.json", {"SaveImage.filename_prefix": ["x", "y"]})
    assert cli.main(["batch", "copy.json", "--grid", grid, "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["event"] for e in events if e["event"] != "job_now"] == ["job_start", "job_done"] * 2
    pictures = sorted(p.name for p in (folder / "output").glob("*.png"))
    assert len(pictures) == 2 and pictures[0].startswith("x-") and pictures[1].startswith("y-")
    assert cli.main(["batch", "copy.json", "--grid", grid]) == 0
    assert "2 of them finished before" in capsys.readouterr().err
    assert sorted(p.name for p in (folder / "output").glob("*.png")) == pictures
    assert results(folder, "copy")["counts"]["done"] == 2


def test_a_typo_in_the_grid_runs_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = write(folder / "g.json", {"SaveImag.filename_prefix": ["x"]})
    assert cli.main(["batch", "copy.json", "--grid", grid]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "g.json, line 1: no nodes are called 'SaveImag'" in told and "Nothing has been run" in told
    assert not list((folder / "output").rglob("*.png"))


def test_options_that_do_not_go_together_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["batch", "copy.json", "--server", "a", "--ray"]) == 1
    assert "--server goes with neither" in capsys.readouterr().err
    assert cli.main(["batch", "copy.json", "--workers", "0"]) == 1


def test_a_check_runs_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "known_classes", wait_nodes)
    sweep = write(folder / "s.json", {"workflow": "wait.json", "grid": {"Wait.number": [1, 2, 2]}})
    assert cli.main(["sweep", sweep, "--check"]) == 0
    assert "2 jobs (1 of 3 rows say the same)" in capsys.readouterr().err
    assert not (folder / "output" / "likeness" / "batches" / "s" / "report.html").exists()


class Judged:
    """A slot whose scores follow from the settings: more seconds, more identity, fewer words obeyed."""

    name = "judge"

    def run(self, task: Task, tell: Tell) -> Result:
        inputs = task.prompt["1"]["inputs"]
        if inputs["number"] == 7:
            raise JobFailed("no photos", again=False)
        card = {"label": "", "dino": inputs["seconds"] / 10, "clip_t": 0.3 - 0.02 * inputs["seconds"]}
        return Result(scores=[card | {"clip_i": None}])

    def revive(self) -> bool:
        return True

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    def target_of(arguments: Any, folders: Folders) -> Embedded:
        target = Embedded(folders, workers=1, nodes=wait_nodes)
        monkeypatch.setattr(target, "open", lambda: [Judged()])
        return target

    monkeypatch.setattr(command, "target_of", target_of)


@pytest.mark.usefixtures("judged")
def test_the_winner_of_a_sweep_is_written_out_as_a_workflow(folder: Path) -> None:
    sweep = write(folder / "s.json", {"workflow": "wait.json", "grid": {"Wait.seconds": [0, 1, 5]}})
    assert cli.main(["sweep", sweep]) == 0
    made = folder / "output" / "likeness" / "batches" / "s"
    winner = json.loads((made / "winner.json").read_text())
    assert winner["1"]["class_type"] == "Wait" and winner["1"]["inputs"]["seconds"] == 1.0
    ranking = results(folder, "s")["ranking"]
    assert [c["settings"]["Wait.seconds"] for c in ranking] == [1, 0, 5]
    assert "The best: seconds=1." in (made / "report.html").read_text()


@pytest.mark.usefixtures("judged")
def test_a_failed_job_is_told_and_the_others_are_done(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "t.csv").write_text("Wait.number\n6\n7\n8\n")
    assert cli.main(["batch", "wait.json", "--table", "t.csv"]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "1 jobs failed; the first (t.csv, line 3): no photos" in told
    assert results(folder, "wait")["counts"] == {"waiting": 0, "running": 0, "done": 2, "failed": 1}
