"""What the page reads of runs, over ComfyUI's own web server: the run folders on disk, as JSON.

Plain functions on a folder of runs, and ``register``, which hangs them on ComfyUI's routes. Nothing here
changes a run, but for ``stop`` and ``delete``, which the page asks the user about first.

    GET    /likeness/runs                       every run, newest first, in a few words
    GET    /likeness/runs/NAME?after=STEP       one run: settings, scores, samples, and its curve after STEP
    GET    /likeness/runs/NAME/report           the run's report as a page
    GET    /likeness/runs/NAME/workflow         the graph that last worked on it
    POST   /likeness/runs/NAME/stop {"settle"}  end it early with the best so far (trainers/run.py says how)
    DELETE /likeness/runs/NAME
    GET    /likeness/reports/FILE               a page that the Report node wrote
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import LikenessError
from ..core.lock import is_locked
from ..core.paths import inside, safe_name
from .live import WORKFLOW_FILE

if TYPE_CHECKING:
    from ..scoring.runs import HeldOut, ReportRun

MAX_POINTS = 2000  # of a curve: more than a chart has pixels
BLOCK_BYTES = 1 << 16

Json = dict[str, Any]
Point = tuple[int, float, float]  # step, loss, learning rate


# --- one run --------------------------------------------------------------------------------------
def folder_of(root: Path, name: str) -> Path:
    """The run's folder. LikenessError for a name that leads elsewhere or to no run."""
    folder = inside(root, safe_name(name, what="run"), what="run")
    if (root / name).is_symlink() or not (folder / "run.json").is_file():
        raise LikenessError(f"There is no run {name!r}.", fix="Look at the list of runs anew.")
    return folder


def state_of(folder: Path, done: Json) -> str:
    """One word: "training", "finished", "ended early", or "paused", which goes on when asked for."""
    if is_locked(folder):
        return "training"
    if not done:
        return "paused"
    return "ended early" if "ended_early" in done else "finished"


def one_run(root: Path, name: str, *, after: int = 0) -> Json:
    """All that a page draws of a run; its curve after step ``after`` only, thinned to MAX_POINTS."""
    from ..scoring.runs import read_run

    folder = folder_of(root, name)
    done = _read(folder / "done.json")
    run = read_run(folder, curve=False)
    points = list(curve(folder / "history.jsonl", after))
    step = points[-1][0] if points else last_step(folder / "history.jsonl")
    return {
        **_words(folder, done),
        "step": step,
        "total": run.total_steps or step,
        "points": thin(points),
        "scores": [list(row) for s in run.scores if all(map(math.isfinite, row := _columns(s)))],
        "samples": [[number, [path.name for path in paths]] for number, paths in run.samples.items()],
        **_judgement(run, done),
        "settings": run.settings,
        "provenance": run.provenance,
        "workflow": (folder / WORKFLOW_FILE).is_file(),
    }


def _columns(score: HeldOut) -> tuple[int, float, float, float]:
    return score.step, score.train_dino, score.held_out_dino, score.clip_t


def _words(folder: Path, done: Json) -> Json:
    settings = _fields(_read(folder / "run.json").get("settings"))
    return {
        "name": folder.name,
        "method": str(settings.get("method", "")),
        "subject": str(settings.get("subject", "")),
        "state": state_of(folder, done),
        "ended_early": done.get("ended_early"),
        "settled": bool(done.get("settled")),
        "stopping": (folder / "stop.json").exists(),
    }


def _judgement(run: ReportRun, done: Json) -> Json:
    """The best step and the verdict: what the run wrote at its end, else by the same rule from its scores."""
    if done:
        return {"best_step": run.best_step, "verdict": run.verdict, "turning_step": run.turning_step}
    if len(run.scores) < 2:  # the untouched model alone
        return {"best_step": None, "verdict": "", "turning_step": None}
    from ..trainers.monitor import Score, best, turning_point, verdict

    given = {k.removeprefix("monitor."): v for k, v in run.settings.items() if k.startswith("monitor.")}
    rule: Json = {
        "patience": int(given.get("patience", 2)),
        "tolerance": float(given.get("tolerance", 0.01)),
    }
    scores = [Score(**vars(score)) for score in run.scores]
    turn, chosen = turning_point(scores, **rule), best(scores, float(given.get("clip_t_floor", 0.9)))
    return {
        "best_step": chosen.step if chosen else None,
        "verdict": verdict(scores, **rule),
        "turning_step": turn.step if turn else None,
    }


# --- the curve ------------------------------------------------------------------------------------
def curve(path: Path, after: int) -> Iterator[Point]:
    """The steps after ``after``, in order; only that part of the file is read."""
    for line in reversed(list(_newest_lines(path, after))):
        if point := _point(line):
            yield point


def _newest_lines(path: Path, after: int) -> Iterator[bytes]:
    """Whole lines, the newest first, down to the step ``after``. What a crash tore is no line."""
    for line in _lines_backwards(path):
        point = _point(line)
        if point and point[0] <= after:
            return
        yield line


def last_step(path: Path) -> int:
    """Steps finished."""
    return next((point[0] for line in _lines_backwards(path) if (point := _point(line))), 0)


def _lines_backwards(path: Path) -> Iterator[bytes]:
    try:
        file = path.open("rb")
    except OSError:
        return
    with file:
        place, rest = file.seek(0, os.SEEK_END), b""
        while place:
            size = min(BLOCK_BYTES, place)
            place = file.seek(place - size)
            rest, *lines = (file.read(size) + rest).split(b"\n")
            yield from reversed(lines)
        yield rest


def _point(line: bytes) -> Point | None:
    try:
        record = json.loads(line)
        return int(record["step"]), float(record["loss"]), float(record["lr"])
    except (ValueError, KeyError, TypeError):
        return None


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most ``limit`` points that look like all of them: of each stretch, the lowest and the highest loss.

    The first and the last point always stay.
    """
    if len(points) <= limit:
        return list(points)
    num = (limit - 2) // 2
    inner = points[1:-1]
    kept: list[Point] = [points[0]]
    for i in range(num):
        stretch = inner[i * len(inner) // num : (i + 1) * len(inner) // num]
        ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept += sorted(ends)
    return [*kept, points[-1]]


# --- all runs -------------------------------------------------------------------------------------
def all_runs(root: Path) -> list[Json]:
    """Every run, the one touched last first."""
    folders = [path.parent for path in root.glob("*/run.json")] if root.is_dir() else []
    seen = sorted(((_touched(folder), folder) for folder in folders), reverse=True)
    return [{**_summary(folder), "touched": int(when_s)} for when_s, folder in seen]


def _summary(folder: Path) -> Json:
    done = _read(folder / "done.json")
    config = _fields(_fields(_read(folder / "run.json").get("settings")).get("config"))
    scores = [row for line in _text(folder / "scores.jsonl").splitlines() if (row := _row(line))]
    trained = [row for row in scores if row["step"] > 0]
    best = next((r for r in trained if r["step"] == done.get("best_step")), None)
    best = best or max(trained, key=lambda r: r["held_out_dino"], default=None)
    samples = sorted((folder / "samples").glob("step-*-0.png"))
    return {
        **_words(folder, done),
        "step": last_step(folder / "history.jsonl"),
        "total": config.get("steps", 0),
        "base": next((row for row in scores if row["step"] == 0), None),
        "best": best,
        "thumbnail": samples[-1].name if samples else None,
        "workflow": (folder / WORKFLOW_FILE).is_file(),
    }


def _touched(folder: Path) -> float:
    places = (folder / name for name in ("done.json", "history.jsonl", "run.json"))
    return max((path.stat().st_mtime for path in places if path.exists()), default=0.0)


# --- what a user may do ---------------------------------------------------------------------------
def stop(root: Path, name: str, *, settle: bool) -> None:
    """End a run at work with the best so far; of one that was ended, choose whether it stays so."""
    from ..trainers import run as runs

    folder = folder_of(root, name)
    if is_locked(folder):
        runs.ask_to_stop(folder, settle=settle)
    else:
        runs.settle(folder, settled=settle)


def delete(root: Path, name: str) -> None:
    """Remove a run and all that it learned. It is out of the list at once, or nothing was removed."""
    folder = folder_of(root, name)
    if is_locked(folder):
        raise LikenessError(f"The run {name} is at work.", fix="Stop it first.")
    grave = folder.with_name(f".deleted-{secrets.token_hex(6)}")
    folder.rename(grave)
    shutil.rmtree(grave, ignore_errors=True)


def report(root: Path, name: str) -> str:
    """The run's report as one HTML page, written beside the others."""
    from ..scoring.report import write_report
    from ..scoring.runs import read_run

    folder = folder_of(root, name)
    path = root.parent / "reports" / f"{folder.name}.html"
    write_report(path, title=folder.name.rsplit("-", 1)[0].replace("_", " "), runs=[read_run(folder)])
    return path.read_text(encoding="utf-8")


def written_report(root: Path, name: str) -> str:
    """A page in the folder of reports. LikenessError for a name that leads elsewhere or to none."""
    folder = root.parent / "reports"
    path = inside(folder, safe_name(name, what="report"), what="report")
    if path.suffix != ".html" or not path.is_file():
        raise LikenessError(f"There is no report {name!r}.", fix="Run the Report node again.")
    return path.read_text(encoding="utf-8")


def workflow(root: Path, name: str) -> Any:
    """The graph that last worked on the run, as the page saved it."""
    graph = _read(folder_of(root, name) / WORKFLOW_FILE)
    if not graph:
        raise LikenessError("This run was not made from the page.", fix="Build its graph from its settings.")
    return graph


# --- reading --------------------------------------------------------------------------------------
def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _read(path: Path) -> Json:
    """A JSON object; an empty one where there is none, or a damaged one."""
    try:
        record = json.loads(_text(path))
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _row(line: str) -> Json | None:
    try:
        row = json.loads(line)
        return {key: float(row[key]) for key in ("step", "train_dino", "held_out_dino", "clip_t")}
    except (ValueError, KeyError, TypeError):
        return None


def _fields(value: Any) -> Json:
    """A mapping as it was before hashing wrapped it in its dataclass's name."""
    fields = value.get("fields", value) if isinstance(value, dict) else {}
    return fields if isinstance(fields, dict) else {}


# --- ComfyUI's server -----------------------------------------------------------------------------
def register() -> None:
    """Hang the functions on ComfyUI's routes, once. Everything runs beside the server's own loop."""
    server = sys.modules.get("server")  # ComfyUI's, which runs by now; importing it here would start another
    if getattr(getattr(server, "PromptServer", None), "instance", None) is None:
        return
    if getattr(register, "done", False):
        return
    from aiohttp import web
    from server import PromptServer

    from . import host

    register.done = True  # type: ignore[attr-defined]
    routes = PromptServer.instance.routes

    def root() -> Path:
        return host.current.runs

    async def answer(work: Callable[[], Any], wrap: Callable[[Any], Any] = web.json_response) -> Any:
        import asyncio

        try:
            return wrap(await asyncio.to_thread(work))
        except LikenessError as error:
            return web.json_response({"error": str(error)}, status=404)
        except OSError as error:
            return web.json_response({"error": str(error)}, status=500)

    def seen(run: Json) -> Json:
        """With what the run's folder does not hold: where it is, the node at work and the time left."""
        folder = root().resolve().relative_to(host.current.output.resolve()).as_posix()
        live = host.current.live.of(run["name"])  # type: ignore[attr-defined]
        return {**run, "folder": f"{folder}/{run['name']}", "live": live}

    def name_in(request: Any) -> str:
        return str(request.match_info["name"])

    async def get_all(request: Any) -> Any:
        return await answer(lambda: [seen(run) for run in all_runs(root())])

    async def get_one(request: Any) -> Any:
        after = request.query.get("after", "0")
        known = int(after) if after.isdecimal() and len(after) < 10 else 0
        return await answer(lambda: seen(one_run(root(), name_in(request), after=known)))

    def page(text: str) -> Any:
        return web.Response(text=text, content_type="text/html")

    async def get_report(request: Any) -> Any:
        return await answer(lambda: report(root(), name_in(request)), page)

    async def get_written_report(request: Any) -> Any:
        return await answer(lambda: written_report(root(), name_in(request)), page)

    async def get_workflow(request: Any) -> Any:
        return await answer(lambda: workflow(root(), name_in(request)))

    async def post_stop(request: Any) -> Any:
        try:
            body = await request.json() if request.can_read_body else {}
        except ValueError:
            body = {}
        settled = isinstance(body, dict) and body.get("settle") is True
        return await answer(lambda: stop(root(), name_in(request), settle=settled))

    async def delete_one(request: Any) -> Any:
        return await answer(lambda: delete(root(), name_in(request)))

    routes.get("/likeness/runs")(get_all)
    routes.get("/likeness/runs/{name}")(get_one)
    routes.get("/likeness/runs/{name}/report")(get_report)
    routes.get("/likeness/runs/{name}/workflow")(get_workflow)
    routes.post("/likeness/runs/{name}/stop")(post_stop)
    routes.delete("/likeness/runs/{name}")(delete_one)
    routes.get("/likeness/reports/{name}")(get_written_report)
