"""A human study in real browsers: raters at once, the server killed twice on the way; is any ballot lost?

Every rater is a Chromium window of its own, presses each answer's key twice, and goes on through the server's
death as a person would. What the box holds at the end is compared with what was pressed.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL import Image

from ..core.errors import LikenessError
from ..scoring.study.definition import draft
from ..scoring.study.protocol import questions
from ..scoring.study.results import invite
from ..scoring.study.site import Request, Site
from . import bar
from .page import chromium

RATERS, SAMPLES, QUICK_RATERS, QUICK_SAMPLES = 7, 6, 2, 2  # 5 questions a sample: 210 ballots, 20
DOWN_S = 2.0  # between a kill and the next start
READY = "(n) => document.querySelector('#count').textContent.startsWith(`${n} of`)"
SHOWN = "() => performance.now() - state.shownAt > 300"
QUESTION = "() => state.session.questions[state.here]"


def run(quick: bool) -> dict[str, Any]:
    raters, samples = (QUICK_RATERS, QUICK_SAMPLES) if quick else (RATERS, SAMPLES)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = _study(Path(folder), samples, raters)
        site = Site.open(path)
        with site.box:
            tokens = [token for _, token in invite(site.study, site.box, raters)]
        server = _Server(path)
        stack.callback(server.kill)
        said = _vote(stack, server, tokens, len(site.questions))
        server.kill()
        kept = [_kept(path, token) for token in tokens]
        with (site := Site.open(path)).box:
            ballots, changes = len(site.box.all()), site.box.num_changes()
    expected = raters * len(questions(site.study))
    wrong = sum(len(rater.items() - there.items()) for rater, there in zip(said, kept, strict=True))
    return {
        "numbers": {"raters": raters, "ballots": ballots, "kills": 2},
        "bars": [
            bar("ballots | lost or other than pressed", value=wrong, op="<=", bar=0),
            bar("ballots | doubled", value=ballots - expected + changes, op="<=", bar=0),
        ],
        "seeds": [0],
    }


class _Server:
    """``likeness study serve`` in a process that dies without notice."""

    def __init__(self, study: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        package = __name__.rpartition(".benchmarks")[0]
        command = ["study", "serve", str(study), "--port", str(self.port)]
        self.command = [sys.executable, "-m", f"{package}.headless.cli", *command]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        if not self.process.stdout.readline():
            raise LikenessError("The study's server did not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def _study(root: Path, samples: int, raters: int) -> Path:
    for m, method in enumerate(("A", "B")):
        for n in range(samples):
            _paint(root / method / "cat" / "a cat" / f"{n:02}.png", (40 * n % 256, 90 * m, 60))
    _paint(root / "photos" / "cat" / "0.png", (200, 120, 40))
    methods = {"A": root / "A", "B": root / "B"}
    photos = root / "photos"
    return draft(root / "study.json", methods=methods, photos=photos, title="Cats", raters=raters).path


def _paint(path: Path, color: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), color).save(path)


def _vote(stack: ExitStack, server: _Server, tokens: list[str], num: int) -> list[dict[str, str]]:
    """Press everything, on all windows in turn; what each rater pressed, by question."""
    browser = stack.enter_context(chromium())
    pages = [browser.new_context().new_page() for _ in tokens]
    for page, token in zip(pages, tokens, strict=True):
        page.set_default_timeout(120_000)
        page.goto(f"http://127.0.0.1:{server.port}/#{token}")
    said: list[dict[str, str]] = [{} for _ in pages]
    for n in range(num):
        for page in pages:
            _until_shown(page, n)
        dies = n in (num // 3, 2 * num // 3)
        if dies:
            server.kill()
        for i, page in enumerate(pages):
            _press(page, (n + i) % 3, said[i])
        if dies:
            time.sleep(DOWN_S)
            server.start()
    for page in pages:
        page.wait_for_selector("text=Thank you")
    return said


def _until_shown(page: Any, answered: int) -> None:
    page.wait_for_function(READY, arg=answered)
    page.wait_for_selector("h1")
    if page.query_selector("button.main"):
        page.focus("button.main")
        page.keyboard.press("Enter")
    page.wait_for_function(SHOWN)


def _press(page: Any, choice: int, said: dict[str, str]) -> None:
    question = page.evaluate(QUESTION)
    words = ("left", "right", "pass") if question["kind"] == "preference" else ("yes", "no", "pass")
    said[question["id"]] = words[choice]
    for _ in range(2):
        page.keyboard.press("123"[choice])


def _kept(path: Path, token: str) -> dict[str, str]:
    """What the box holds of a rater, as the page would show it."""
    with (site := Site.open(path)).box:
        headers = {"authorization": f"Bearer {token}"}
        reply = site.answer(Request(method="GET", path="api/session", headers=headers))
    return {question["id"]: question["answer"] for question in json.loads(reply.body)["questions"]}
