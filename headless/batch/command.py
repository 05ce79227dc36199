"""``likeness batch`` and ``likeness sweep``: from options to a finished report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ...core.errors import LikenessError
from ...core.lock import run_lock
from ...core.paths import safe_name, slug, write_atomic
from ...nodes import host
from .. import graph as graphs
from .. import runner
from ..display import Display, Screen
from ..graph import Schemas
from .checking import Job, Workflow
from .dispatch import Dispatch
from .embedded import Embedded, Folders
from .manifest import FAILED, Manifest, Planned, Record
from .plan import Row, product, read_grid, read_subjects, read_table
from .report import write_results
from .screen import Lines, LiveTable, Watcher
from .sweep import Ranking, Sweep, rank, read_sweep, winning_workflow
from .targets import Catalogue, Prompt, Target


@dataclass(frozen=True, kw_only=True)
class Part:
    """One workflow and the rows that it is run with."""

    workflow: Workflow
    rows: Iterable[Row]


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    batch = commands.add_parser("batch", help="run a workflow many times, over many machines")
    batch.add_argument("workflow", type=Path, metavar="WORKFLOW")
    batch.add_argument("--grid", type=Path, metavar="FILE", help='JSON: {"node.input": [values]}')
    batch.add_argument("--table", type=Path, metavar="FILE", help="CSV or JSON Lines: a job per line")
    batch.add_argument("--subjects", type=Path, metavar="DIR", help="a job per subfolder or .zip of photos")
    _add_options(batch)
    batch.set_defaults(command=_batch)

    sweep = commands.add_parser("sweep", help="settings over subjects and seeds: which is best?")
    sweep.add_argument("sweep", type=Path, metavar="SWEEP", help="JSON: workflow, grid, subjects, seeds")
    _add_options(sweep)
    sweep.set_defaults(command=_sweep)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", metavar="NAME", help="of the batch; default: the file's name")
    parser.add_argument(
        "--output", type=Path, default=Path("output"), metavar="DIR", help="default: ./output"
    )
    parser.add_argument("--input", type=Path, default=Path("input"), metavar="DIR", help="default: ./input")
    parser.add_argument("--models", type=Path, metavar="DIR", help="default: OUTPUT/models")
    parser.add_argument("--workers", type=int, metavar="N", help="processes on this machine; default: 1")
    parser.add_argument(
        "--server", action="append", default=[], metavar="URL", help="a ComfyUI to run on; may be repeated"
    )
    parser.add_argument(
        "--ray", nargs="?", const="local", metavar="ADDRESS", help="run on Ray: here, or at an address"
    )
    parser.add_argument("--cpus", type=float, default=1.0, metavar="N", help="of each job on Ray")
    parser.add_argument("--gpus", type=float, default=0.0, metavar="N", help="of each job on Ray")
    parser.add_argument("--retries", type=int, default=2, metavar="N", help="of a failed job; default: 2")
    parser.add_argument("--check", action="store_true", help="look for mistakes, run nothing")
    parser.add_argument("--json", action="store_true", help="one event per line on standard output")


def _batch(arguments: argparse.Namespace, plain: host.Plain, display: Display) -> None:
    target, catalogue = _prepared(arguments, plain)
    parts = {"": _part(arguments, catalogue)}
    console = _console(display)
    _carry_out(arguments, plain, console, target, parts, arguments.name or arguments.workflow.stem, None)


def _part(arguments: argparse.Namespace, catalogue: Catalogue) -> Part:
    workflow = _workflow(arguments.workflow, catalogue)
    rows = product(
        read_table(arguments.table) if arguments.table else [Row(settings={})],
        read_subjects(arguments.subjects) if arguments.subjects else [Row(settings={})],
        read_grid(arguments.grid) if arguments.grid else [Row(settings={})],
    )
    return Part(workflow=workflow, rows=rows)


def _sweep(arguments: argparse.Namespace, plain: host.Plain, display: Display) -> None:
    sweep = read_sweep(arguments.sweep)
    target, catalogue = _prepared(arguments, plain)
    parts = {}
    for method in sweep.methods:
        workflow = _workflow(method.workflow, catalogue)
        rows = sweep.rows(method, workflow.graph, str(method.workflow))
        parts[method.name] = Part(workflow=workflow, rows=rows)
    console = _console(display)
    _carry_out(arguments, plain, console, target, parts, arguments.name or arguments.sweep.stem, sweep)


def _prepared(arguments: argparse.Namespace, plain: host.Plain) -> tuple[Target, Catalogue]:
    folders = Folders(output=arguments.output, input=arguments.input, models=arguments.models)
    folders.place(plain)
    target = target_of(arguments, folders)
    return target, target.catalogue()


def target_of(arguments: argparse.Namespace, folders: Folders) -> Target:
    """The one target that the options name."""
    if arguments.workers is not None and arguments.workers < 1:
        raise LikenessError(f"--workers is {arguments.workers}", expected="1 or more")
    if arguments.server and (arguments.ray or arguments.workers):
        raise LikenessError("--server goes with neither --ray nor --workers", fix="Take one out")
    if arguments.server:
        from .servers import Servers

        return Servers(arguments.server)
    if arguments.ray:
        from .on_ray import OnRay

        return OnRay(
            folders,
            address=arguments.ray,
            workers=arguments.workers,
            cpus=arguments.cpus,
            gpus=arguments.gpus,
        )
    return Embedded(folders, workers=arguments.workers or 1, nodes=runner.known_classes)


def _workflow(path: Path, catalogue: Catalogue) -> Workflow:
    schemas: Schemas = catalogue.schemas
    return Workflow(graphs.load(path, schemas), catalogue, path.name)


def _carry_out(
    arguments: argparse.Namespace,
    plain: host.Plain,
    console: Console,
    target: Target,
    parts: dict[str, Part],
    name: str,
    sweep: Sweep | None,
) -> None:
    folder = plain.output / "likeness" / "batches" / safe_name(slug(name), what="batch name")
    with run_lock(folder), closing(Manifest(folder / "manifest.sqlite")) as manifest:
        planned = manifest.plan(_jobs(parts))
        _say_plan(console, planned)
        if arguments.check:
            return
        try:
            _run(arguments, plain, target, parts, manifest, _watcher(arguments, console, manifest, planned))
        finally:
            ranking = _rank(manifest, parts, sweep)
            paths = write_results(folder, manifest, title=name, ranking=ranking)
            if sweep and ranking.winner:
                paths.append(_write_winner(folder, manifest, parts, ranking))
            for path in paths:
                console.print(f"  {path}", soft_wrap=True, highlight=False, markup=False)
        _complain(manifest, folder)


def _console(display: Display) -> Console:
    """The screen's own, whose progress of single nodes makes room for the table of jobs."""
    if isinstance(display, Screen):
        display.progress.stop()
        return display.console
    return Console(stderr=True)


def _jobs(parts: dict[str, Part]) -> Iterator[Job]:
    for part in parts.values():
        yield from part.workflow.jobs(part.rows)


def _run(
    arguments: argparse.Namespace,
    plain: host.Plain,
    target: Target,
    parts: dict[str, Part],
    manifest: Manifest,
    watcher: Watcher,
) -> None:
    def prompt_of(record: Record) -> Prompt:
        return parts[record.method].workflow.prompt(record.job)

    counts = manifest.counts()
    if not counts["waiting"]:
        return
    with closing(target):
        slots = target.open()
        try:
            with watcher:
                dispatch = Dispatch(manifest, slots, prompt_of, retries=arguments.retries, tell=watcher.told)
                dispatch.run(plain.stop.is_set)
        finally:
            for slot in slots:
                slot.close()


def _watcher(
    arguments: argparse.Namespace, console: Console, manifest: Manifest, planned: Planned
) -> Watcher:
    return Lines(sys.stdout) if arguments.json else LiveTable(console, manifest.counts, planned.finished)


def _say_plan(console: Console, planned: Planned) -> None:
    words = f"{planned.jobs} jobs"
    words += f" ({planned.rows - planned.jobs} of {planned.rows} rows say the same)" * (
        planned.rows > planned.jobs
    )
    words += f", {planned.finished} of them finished before" * bool(planned.finished)
    console.print(words, highlight=False)


def _rank(manifest: Manifest, parts: dict[str, Part], sweep: Sweep | None) -> Ranking:
    seeds = [f"{node}.seed" for part in parts.values() for node in part.workflow.graph]
    return rank(manifest, seeds) if sweep is None else rank(manifest, seeds, keep_prompts=sweep.keep_prompts)


def _write_winner(folder: Path, manifest: Manifest, parts: dict[str, Part], ranking: Ranking) -> Path:
    assert ranking.winner
    number = ranking.winner.number
    record = next(r for r in manifest.records() if r.number == number)
    prompt = parts[record.method].workflow.prompt(record.job)
    path = folder / "winner.json"
    write_atomic(path, winning_workflow(prompt))
    return path


def _complain(manifest: Manifest, folder: Path) -> None:
    if failed := manifest.counts()[FAILED]:
        first = next(manifest.records(FAILED))
        raise LikenessError(
            f"{failed} jobs failed; the first{f' ({first.place})' if first.place else ''}: {first.reason}",
            fix=f"See {folder / 'report.html'}. The same command tries them again",
        )
