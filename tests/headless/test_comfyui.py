"""A ComfyUI on this machine, played by a small server: found, waited for, stopped, its last words told."""

from __future__ import annotations

import sys
import urllib.request
from pathlib import Path

import pytest
from likeness.core.errors import Interrupted, LikenessError
from likeness.headless import comfyui
from likeness.headless.comfyui import Install, NoComfyUI, Process

SERVER = """
import http.server, sys, time
port = int(sys.argv[sys.argv.index("--port") + 1])
print("starting with", *sys.argv[1:], flush=True)
if "--broken" in sys.argv:
    sys.exit("no such module: torch")
time.sleep(float(sys.argv[-1]) if "--late" in sys.argv else 0)
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/system_stats" else 404)
        self.end_headers()
    def log_message(self, *_):
        pass
try:
    http.server.HTTPServer(("127.0.0.1", port), Answer).serve_forever()
except KeyboardInterrupt:
    print("stopped as asked", flush=True)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    folder = tmp_path / "ComfyUI"
    folder.mkdir()
    (folder / "main.py").write_text(SERVER)
    monkeypatch.setattr(comfyui, "POLL_S", 0.05)
    return Install(folder, Path(sys.executable))


def test_it_is_ready_when_it_answers_and_stops_when_asked(install: Install, tmp_path: Path) -> None:
    process = Process(install, tmp_path / "server.log", ["--late", "0.5"])
    process.start()
    with urllib.request.urlopen(f"{process.url}/system_stats") as answer:
        assert answer.status == 200
    process.stop()
    assert process.process is not None and process.process.returncode == 0
    assert "--disable-auto-launch" in process.log() and process.log_tail(1) == "stopped as asked"
    process.stop()  # once more is no harm


def test_one_that_dies_at_the_start_is_told_with_its_last_words(install: Install, tmp_path: Path) -> None:
    process = Process(install, tmp_path / "server.log", ["--broken"])
    with pytest.raises(LikenessError, match="ended with 1 at start") as error:
        process.start()
    assert "no such module: torch" in str(error.value)


def test_a_stop_while_it_starts_leaves_no_server(install: Install, tmp_path: Path) -> None:
    process = Process(install, tmp_path / "server.log", ["--late", "60"])

    def stop() -> None:
        raise Interrupted("Stopped as asked.")

    with pytest.raises(Interrupted):
        process.start(stop)
    assert process.process is not None and process.process.poll() is not None


def test_it_is_found_where_the_environment_says(
    install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(comfyui, "NEEDED", ("json",))
    monkeypatch.setenv("COMFYUI_PATH", str(install.path))
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    assert Install.find() == install
    monkeypatch.setattr(comfyui, "NEEDED", ("json", "no_such_module"))
    with pytest.raises(NoComfyUI, match="lacks no_such_module"):
        Install.find()
    monkeypatch.setenv("COMFYUI_PYTHON", str(tmp_path / "python"))
    with pytest.raises(NoComfyUI, match="is no file"):
        Install.find()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "elsewhere"))
    with pytest.raises(NoComfyUI, match=r"elsewhere has no main\.py.*git clone"):
        Install.find()


def test_what_shadows_its_modules_is_kept_from_it(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    environment = install.environment(EXTRA="1")
    assert "PYTHONPATH" not in environment
    assert (environment["HF_HUB_OFFLINE"], environment["EXTRA"]) == ("1", "1")
