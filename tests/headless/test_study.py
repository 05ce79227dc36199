"""The study as raters and its holder meet it: over HTTP, over a killed server, in a browser, as commands."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from likeness.headless.study_server import serving
from likeness.scoring.study.ballots import Ballots
from likeness.scoring.study.protocol import fingerprint
from likeness.scoring.study.results import invite
from likeness.scoring.study.site import Site
from study_maker import make_study

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
BROWSER_FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]  # root in a container
SERVE = (
    "import sys; from pathlib import Path; from threading import Event\n"
    "from likeness.headless.study_server import serving; from likeness.scoring.study.site import Site\n"
    "with serving(Site.open(Path(sys.argv[1])), '127.0.0.1', int(sys.argv[2])) as url:\n"
    "    print(url, flush=True); Event().wait()\n"
)


class Server:
    """A process that serves a study, and dies as by a power cut."""

    def __init__(self, study: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command = [sys.executable, "-c", SERVE, str(study), str(self.port)]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None and self.process.stdout.readline().startswith("http")

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=30)


class Voter(threading.Thread):
    """A rater who answers everything, clicks twice now and then, and does not give up."""

    def __init__(self, port: int, token: str) -> None:
        super().__init__(daemon=True)
        self.port, self.token = port, token
        self.said: dict[str, str] = {}
        self.outcomes: Counter[str] = Counter()
        self.line: http.client.HTTPConnection | None = None

    def run(self) -> None:
        status, session = self.ask("GET", "/api/session")
        assert status == 200
        for n, question in enumerate(session["questions"]):
            answers = ("left", "right") if question["kind"] == "preference" else ("yes", "no", "pass")
            answer = answers[n % len(answers)]
            times = 3 if n % 10 == 0 else 1
            for _ in range(times):
                ballot = {"question": question["id"], "answer": answer, "revision": 0}
                status, told = self.ask("POST", "/api/ballot", ballot)
                assert status == 200 and told["answer"] == answer
                self.outcomes[told["outcome"]] += 1
            self.said[question["id"]] = answer

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        while True:
            try:
                self.line = self.line or http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
                self.line.request(method, path, json.dumps(body) if body else None, headers)
                reply = self.line.getresponse()
                return reply.status, json.loads(reply.read())
            except (OSError, http.client.HTTPException, ValueError):
                self.line = None
                time.sleep(0.02)


def test_seven_raters_lose_and_double_nothing_over_a_killed_server(tmp_path: Path) -> None:
    """7 raters at once, 200 ballots each, the server killed (SIGKILL) twice on the way."""
    study = make_study(tmp_path, samples=40)
    with Ballots(study.ballots_path, fingerprint(study)) as box:
        tokens = [token for _, token in invite(study, box, 7)]
    server = Server(study.path)
    voters = [Voter(server.port, token) for token in tokens]
    for voter in voters:
        voter.start()
    for share in (0.3, 0.6):
        while sum(len(voter.said) for voter in voters) < share * 1400:
            time.sleep(0.005)
        server.kill()
        server.start()
    for voter in voters:
        voter.join(timeout=120)
    server.kill()
    assert [len(voter.said) for voter in voters] == [200] * 7
    site = Site.open(study.path)
    with site.box:
        ballots = site.box.all()
        assert len(ballots) == 1400 and {b.revision for b in ballots} == {1} and site.box.num_changes() == 0
        assert Counter(b.rater for b in ballots) == dict.fromkeys(range(1, 8), 200)
        for voter in voters:  # what stands is what each rater was told was saved
            rater = site.box.who(voter.token)
            assert rater is not None
            assert {q["id"]: q["answer"] for q in site._session(rater)["questions"]} == voter.said
    repeats = sum(voter.outcomes["kept"] for voter in voters)
    assert repeats >= 7 * 20 * 2  # and the double clicks were double clicks


# --- what the server itself refuses -------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Site, str, str]]:
    """A site, its URL, and a rater's token."""
    site = Site.open(make_study(tmp_path, samples=2).path)
    token = invite(site.study, site.box, 1)[0][1]
    with site.box, serving(site, "127.0.0.1", 0) as url:
        yield site, url, token


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("Content-Length: 99999999\r\n", b"413"),
        ("Content-Length: 5000\r\n", b"413"),
        ("Content-Length: -1\r\n", b"411"),
        ("Content-Length: x\r\n", b"411"),
        ("Transfer-Encoding: chunked\r\n", b"411"),
    ],
)
def test_a_body_of_no_or_too_great_length_is_not_read(
    served: tuple[Site, str, str], head: str, status: bytes
) -> None:
    port = int(served[1].rstrip("/").rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        line.sendall(f"POST /api/ballot HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
        assert line.recv(4096).split()[1] == status


def test_a_port_that_is_taken(served: tuple[Site, str, str]) -> None:
    from likeness.core.errors import LikenessError

    port = int(served[1].rstrip("/").rpartition(":")[2])
    with pytest.raises(LikenessError, match="cannot be served"), serving(served[0], "127.0.0.1", port):
        pass


# --- in a browser -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="THE STUDY'S PAGE WAS NOT TESTED: no playwright")
    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if program is None:
        pytest.skip("THE STUDY'S PAGE WAS NOT TESTED: no Chromium. `apt-get install -y chromium`")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=BROWSER_FLAGS)
        yield running
        running.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A window whose errors, and refusals of the content policy, fail the test."""
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    yield page
    page.close()
    assert problems == []


SHOWN = "() => performance.now() - state.shownAt > 300 && !state.saving"


def settled(tab: Any, heading: str) -> None:
    tab.wait_for_function(
        "(text) => document.querySelector('h1')?.textContent.startsWith(text)", arg=heading, timeout=60_000
    )
    tab.wait_for_function(SHOWN)


def number_of(tab: Any) -> str:
    return str(tab.inner_text("#count"))


def tab_to(tab: Any, text: str) -> None:
    """Press Tab until the focus is on the button that says so; no mouse, no focus() from outside."""
    for _ in range(12):
        tab.keyboard.press("Tab")
        if text in tab.evaluate("() => document.activeElement.textContent"):
            return
    raise AssertionError(f"Tab does not reach {text!r}")


def test_a_rater_finishes_with_the_keyboard_alone(served: tuple[Site, str, str], tab: Any) -> None:
    """The first half with Tab and Enter, the rest with the number keys."""
    site, url, token = served
    tab.goto(f"{url}#{token}")
    for n in range(10):
        if n in (0, 4, 8):
            settled(tab, ("Is it", "Does it", "Which one")[n // 4])
            tab_to(tab, "Begin")
            tab.keyboard.press("Enter")
        settled(tab, ("Do the", "Is the", "When")[n // 4])
        if n < 5:
            tab_to(tab, "No" if n % 2 else "Yes")
            tab.keyboard.press("Enter")
        else:
            tab.keyboard.press("123"[n % 3])
        tab.wait_for_function(
            f"() => document.querySelector('#count').textContent.startsWith('{n + 1} of 10')"
        )
    settled(tab, "Thank you")
    assert len(site.box.of(1)) == 10 and site.box.num_changes() == 0
    assert Counter(b.answer for b in site.box.all() if b.answer in ("yes", "no"))["yes"] >= 3


def test_reload_back_double_click_and_a_change_of_mind(served: tuple[Site, str, str], tab: Any) -> None:
    site, url, token = served
    tab.goto(f"{url}#{token}")
    settled(tab, "Is it")
    tab.click("text=Begin")
    settled(tab, "Do the")
    tab.dblclick("[data-answer=yes]")
    tab.wait_for_timeout(500)
    assert number_of(tab) == "1 of 10 answered" and len(site.box.all()) == 1  # not the next one too
    tab.reload()
    settled(tab, "Do the")
    assert "Question 2" in tab.inner_text("nav")
    tab.click("[data-answer=no]")
    tab.wait_for_function("() => document.querySelector('nav').textContent.includes('Question 3')")
    tab.go_back()
    settled(tab, "Do the")
    assert tab.get_attribute("[data-answer=no]", "aria-pressed") == "true"
    tab.click("[data-answer=pass]")
    tab.wait_for_function("() => document.querySelector('#status').textContent === 'Answer changed.'")
    assert sorted((b.answer, b.revision) for b in site.box.all()) == [("pass", 2), ("yes", 1)]
    assert site.box.num_changes() == 1


def test_two_windows_of_one_rater(served: tuple[Site, str, str], browser: Any) -> None:
    site, url, token = served
    tabs = [browser.new_page(), browser.new_page()]
    for tab in tabs:
        tab.goto(f"{url}#{token}")
        settled(tab, "Is it")
        tab.click("text=Begin")
        settled(tab, "Do the")
    tabs[0].click("[data-answer=yes]")
    tabs[0].wait_for_function("() => document.querySelector('#count').textContent.startsWith('1 of')")
    tabs[1].click("[data-answer=no]")
    tabs[1].wait_for_function(
        "() => document.querySelector('#status').textContent.includes('another window')"
    )
    assert tabs[1].get_attribute("[data-answer=yes]", "aria-pressed") == "true"
    assert [(b.answer, b.revision) for b in site.box.all()] == [("yes", 1)]
    for tab in tabs:
        tab.close()


@pytest.mark.parametrize(("fragment", "told"), [("", "whole link"), ("#wrong", "not known")])
def test_a_link_that_is_wrong(served: tuple[Site, str, str], browser: Any, fragment: str, told: str) -> None:
    tab = browser.new_page()
    tab.goto(served[1] + fragment)
    settled(tab, "This does not work")
    assert told in tab.inner_text("main")
    tab.close()


# --- on the command line ------------------------------------------------------------------------------


def test_from_folders_to_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from likeness.headless import cli

    make_study(tmp_path, samples=2)
    file = str(tmp_path / "new.json")
    methods = [f"--method={name}={tmp_path / name}" for name in ("Ours", "Theirs")]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        create = ["study", "create", file, *methods, "--photos", str(tmp_path / "photos"), "--raters", "2"]
        assert cli.main(create) == 0
        assert "10 questions about 2 samples, for 2 raters" in capsys.readouterr().out
        assert cli.main(create) == 1  # it is there
        assert cli.main(["study", "invite", file, "--url", "https://study.example/x"]) == 0
        links = capsys.readouterr().out.splitlines()
        assert len(links) == 2 and links[0].startswith("1\thttps://study.example/x/#")
        assert cli.main(["study", "invite", file]) == 1
        assert "0 seats are free" in capsys.readouterr().err
        assert cli.main(["study", "invite", file, "--renew", "1"]) == 0
        assert capsys.readouterr().out.splitlines()[0].partition("#")[2] not in links[0]
        assert cli.main(["study", "status", file]) == 0
        assert "0 of 10" in capsys.readouterr().out
        assert cli.main(["study", "export", file]) == 0
        assert (tmp_path / "new.results" / "results.html").is_file()
        assert cli.main(["study", "serve", str(tmp_path / "none.json")]) == 1
        assert "There is no study" in capsys.readouterr().err
        with contextlib.suppress(SystemExit):
            cli.main(["study"])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
