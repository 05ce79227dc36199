"""The command line: exit codes, events as lines, and a stop that loses nothing."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from likeness.headless import cli, runner
from likeness.nodes import host
from likeness_stubs import CLASSES, Train

HERE = Path(__file__).parent


@pytest.fixture
def workflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(runner, "known_classes", lambda: CLASSES)
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"1": {"class_type": "Train", "inputs": {}, "_meta": {"title": "Learn"}}}))
    Train.saved.clear()
    yield path
    for number, handler in handlers.items():
        signal.signal(number, handler)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_logging_is_given_back_as_it_was(workflow: Path) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    assert cli.main(["run", str(workflow), "--json"]) == 0
    assert cli.main(["run", "missing.json"]) == 1
    assert (root.handlers, root.level) == (before, level)


def test_json_gives_every_event_of_every_node_on_a_line(
    workflow: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", str(workflow), "--json"]) == 0
    events = lines(capsys.readouterr().out)
    kinds = [event["event"] for event in events]
    assert kinds[0] == "node_start" and kinds[-2:] == ["node_end", "finished"]
    assert kinds.count("step") == 1000 and {"phase", "held_out_score", "checkpoint", "done"} < set(kinds)
    assert all(event["node"] == "1" for event in events)
    step = next(event for event in events if event["event"] == "step")
    assert (step["step"], step["total"], step["loss"]) == (1, 1000, 1.0)
    assert next(e for e in events if e["event"] == "done")["concept"]["kind"] == "lora"


def test_a_person_sees_scores_and_the_end(workflow: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", str(workflow)]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""  # standard output is for data
    assert "held-out 0.600" in shown.err and "best so far" in shown.err and "Done in" in shown.err


def test_an_error_is_said_once_and_exits_with_1(workflow: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", str(workflow), "--set", "Learn.steps=3"]) == 1
    shown = capsys.readouterr().err
    assert "has no input steps" in shown and "Traceback" not in shown
    assert cli.main(["run", str(workflow), "--json", "--set", "Learn.steps=3"]) == 1
    (event,) = lines(capsys.readouterr().out)
    assert event["event"] == "error" and "has no input steps" in event["problem"]


def test_a_missing_workflow_exits_with_1(workflow: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "none.json"]) == 1
    assert "There is no workflow file none.json" in capsys.readouterr().err


def test_without_a_comfyui_local_says_how_to_get_one(
    workflow: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(workflow.parent / "none"))
    assert cli.main(["run", str(workflow), "--server", "local", "--json"]) == 1
    error = lines(capsys.readouterr().out)[-1]
    assert "has no main.py" in error["problem"] and "git clone" in error["fix"]


def test_the_api_form_goes_to_standard_output(workflow: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["api", str(workflow)]) == 0
    assert json.loads(capsys.readouterr().out)["1"]["class_type"] == "Train"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_closes_the_training_before_the_exit(
    workflow: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    number: signal.Signals, code: int,
) -> None:  # fmt: skip
    seen: list[str] = []
    event = cli.JsonLines.event

    def stop_at_the_score(self: cli.JsonLines, what: Any) -> None:
        event(self, what)
        seen.append(type(what).__name__)
        if seen[-1] == "HeldOutScore":
            os.kill(os.getpid(), number)

    monkeypatch.setattr(cli.JsonLines, "event", stop_at_the_score)
    assert cli.main(["run", str(workflow), "--json"]) == code
    assert Train.saved == ["saved"] and len(seen) < 510
    last = lines(capsys.readouterr().out)[-1]
    assert (last["event"], last["exit_code"]) == ("stopped", code)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_real_process_exits_by_signal_with_its_code(tmp_path: Path, number: signal.Signals) -> None:
    """The whole command in a process of its own, stopped while it trains."""
    script = tmp_path / "endless.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
        "import stubs, time\n"
        "from likeness.headless import cli, runner\n"
        "from likeness.trainers.events import Step\n"
        "def endless(saved, folder):\n"
        "    try:\n"
        "        for n in range(1, 10**9):\n"
        "            time.sleep(0.01); yield Step(n, 10**9, 1.0, {}, 1.0, 1.0, 0.1)\n"
        "    finally:\n"
        "        print('checkpoint written', flush=True)\n"
        "stubs.events = endless\n"
        "runner.known_classes = lambda: stubs.CLASSES\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    workflow = tmp_path / "train.json"
    workflow.write_text(json.dumps({"1": {"class_type": "Train", "inputs": {}}}))
    command = [sys.executable, str(script), "run", str(workflow), "--json", "--output", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if '"event": "step"' in line:
                break
        process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait(timeout=60) == 128 + number
    assert "checkpoint written" in rest and '"event": "stopped"' in rest


def test_toybox_draws_a_subject_that_loads(tmp_path: Path) -> None:
    assert cli.main(["toybox", "subject", str(tmp_path / "fish"), "--noun", "fish", "--seed", "3"]) == 0
    from likeness.subjects import load_folder

    subject = load_folder(tmp_path / "fish", class_noun="fish")
    assert (len(subject.photos), len(subject.held_out)) == (5, 10)
    assert all("{}" in (photo.caption or "") for photo in subject.photos + subject.held_out)
    first = [photo.sha256 for photo in subject.photos]
    cli.main(["toybox", "subject", str(tmp_path / "again"), "--noun", "fish", "--seed", "3"])
    again = load_folder(tmp_path / "again", class_noun="fish")
    assert [photo.sha256 for photo in again.photos] == first


def test_an_unknown_noun(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["toybox", "subject", str(tmp_path / "x"), "--noun", "unicorn"]) == 1
    assert "unicorn" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_folders_follow_the_options(workflow: Path, tmp_path: Path) -> None:
    cli.main(["run", str(workflow), "--output", "here", "--models", "there", "--json"])
    assert isinstance(host.current, host.Plain)
    assert host.current.output == tmp_path / "here" and host.current.models == tmp_path / "there"
    assert host.current.model_folder("loras") == tmp_path / "there" / "loras"


def test_an_archive_without_the_starter_says_what_to_do(
    workflow: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "likeness.headless.comfyui", None)  # as ``import`` meets a missing file
    assert cli.main(["run", str(workflow), "--server", "local"]) == 1
    assert "cannot start a ComfyUI" in "".join(capsys.readouterr())
