"""The command ``likeness``: run workflows with no screen, one or many, and all about the built-in model."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..core.errors import Interrupted, LikenessError
from ..nodes import host
from . import graph as graphs
from . import remote, runner, study
from .batch.command import add_commands
from .display import Display, JsonLines, Screen


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 an error, 130 / 143 stopped by SIGINT / SIGTERM after a checkpoint.

    Of several processes that a launcher started (``accelerate launch``), the first does this, and the others
    help its trainers.
    """
    arguments = _parser().parse_args(argv)
    if os.getenv("WORLD_SIZE", "1") == "1":
        return _run_command(arguments)
    from ..trainers import processes

    _quiet_transformers()
    return processes.led_by(lambda several: _run_command(arguments, several=several))


def _run_command(arguments: argparse.Namespace, *, several: bool = False) -> int:
    display: Display = JsonLines(sys.stdout) if getattr(arguments, "json", False) else Screen()
    stopped_by: list[int] = []
    plain = host.Plain()
    _stop_on_signals(plain, stopped_by, patient=several)
    host.use(plain)
    try:
        with _logged_to(display), display:
            arguments.command(arguments, plain, display)
        return 0
    except LikenessError as error:
        display.failed(error)
        return 1
    except (Interrupted, KeyboardInterrupt):
        code = 128 + (stopped_by[0] if stopped_by else signal.SIGINT)
        display.stopped(code)
        return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="likeness", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run a workflow file (page or API format)")
    run.add_argument("workflow", type=Path, metavar="WORKFLOW")
    run.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", dest="settings")
    run.add_argument("--output", type=Path, default=Path("output"), metavar="DIR", help="default: ./output")
    run.add_argument("--input", type=Path, default=Path("input"), metavar="DIR", help="default: ./input")
    run.add_argument(
        "--models", type=Path, metavar="DIR", help="like ComfyUI's models folder; default: OUTPUT/models"
    )
    run.add_argument(
        "--server",
        metavar="URL",
        help="a running ComfyUI that has this pack, or 'local': start the one on this machine for this run; "
        "default: here, without one",
    )
    run.add_argument("--json", action="store_true", help="one event per line on standard output")
    run.set_defaults(command=_run)

    add_commands(commands)

    api = commands.add_parser("api", help="print the API form of a workflow")
    api.add_argument("workflow", type=Path, metavar="WORKFLOW")
    api.set_defaults(command=_api)

    study.add_commands(commands.add_parser("study", help="ask people: questions, raters, ballots, results"))
    _add_toybox(commands.add_parser("toybox", help="the built-in model"))
    return parser


def _add_toybox(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    subject = actions.add_parser("subject", help="draw a subject's photos: OUT/train and OUT/held_out")
    subject.add_argument("out", type=Path, metavar="OUT")
    subject.add_argument("--noun", default="fish")
    subject.add_argument("--seed", type=int, default=0)
    subject.set_defaults(command=_subject)

    train = actions.add_parser("train", help="train it anew, part by part; goes on where it was stopped")
    train.add_argument("parts", nargs="*", metavar="PART", help="vae, clip, unet and so on; default: all")
    train.add_argument("--state", type=Path, metavar="DIR", help="default: the user's cache folder")
    train.add_argument("--from", type=Path, metavar="DIR", dest="start_from", help="begin with these weights")
    train.add_argument("--workers", type=int, default=1, help="processes that share every batch")
    train.add_argument("--json", action="store_true", help="one event per line on standard output")
    train.set_defaults(command=_train_toybox)

    card = actions.add_parser("card", help="measure how good it is, on what it never saw")
    card.add_argument("--weights", type=Path, metavar="DIR", help="default: those of the package")
    card.add_argument("--pictures", type=Path, metavar="DIR", help="where to put contact sheets")
    card.add_argument("--quick", action="store_true", help="a quarter of the pictures")
    card.add_argument("--seed", type=int, default=0)
    card.set_defaults(command=_card)


def _run(arguments: argparse.Namespace, plain: host.Plain, display: Display) -> None:
    if arguments.server:
        remote.run(arguments.server, arguments.workflow, arguments.settings, plain, display)
        return
    plain.place(output=arguments.output, models=arguments.models, input=arguments.input)
    classes = runner.known_classes()
    graph = graphs.load(arguments.workflow, runner.schemas_of(classes))
    for setting in arguments.settings:
        runner.set_input(graph, classes, setting)
    plain.listener = display.event
    _quiet_transformers()
    results = runner.run(graph, classes, display.node)
    display.finished([made for output in results.values() for made in (output.ui or {}).get("likeness", [])])


def _api(arguments: argparse.Namespace, plain: host.Plain, display: Display) -> None:
    graph = graphs.load(arguments.workflow, runner.schemas_of(runner.known_classes()))
    sys.stdout.write(json.dumps(graphs.to_api(graph), indent=2) + "\n")


def _subject(arguments: argparse.Namespace, plain: host.Plain, display: Display) -> None:
    from ..backbones.toybox.photos import write_subject

    write_subject(arguments.out, noun=arguments.noun, seed=arguments.seed)


def _train_toybox(arguments: argparse.Namespace, plain: host.Plain, display: Display) -> None:
    from ..backbones.toybox import training
    from ..trainers.events import Step

    began = ""

    def tell(now: training.Progress) -> None:
        nonlocal began
        if began != now.part:
            began = now.part
            display.node(graphs.Node(now.part, "toybox", title=f"Toybox: {now.part}"), "start")
        loss = now.values.get("loss", sum(now.values.values()))
        display.event(Step(now.step, now.steps, loss, now.values, 0.0, 0.0, now.seconds_per_step))
        plain.check()

    weights = training.train(
        arguments.parts,
        arguments.state,
        on_event=tell,
        start_from=arguments.start_from,
        num_workers=arguments.workers,
    )
    display.finished([host.made("weights", weights)])


def _card(arguments: argparse.Namespace, plain: host.Plain, display: Display) -> None:
    from ..backbones.toybox import card

    def tell(part: str, numbers: card.Numbers) -> None:
        plain.check()

    numbers = card.card(
        arguments.weights,
        quick=arguments.quick,
        seed=arguments.seed,
        pictures_dir=arguments.pictures,
        on_event=tell,
    )
    met = card.verdicts(numbers)
    for name, number in numbers.items():
        bar = f"  bar {card.BARS[name]:g}: {'met' if met[name] else 'MISSED'}" if name in met else ""
        sys.stdout.write(f"{name:<32}{number:10.4f}{bar}\n")


def _stop_on_signals(plain: host.Plain, stopped_by: list[int], *, patient: bool) -> None:
    """The first signal stops at the next event, with a checkpoint; the second at once.

    ``patient``: a launcher of several processes sends its own signals after the user's, so that none counts
    as a second one.
    """

    def handle(number: int, frame: Any) -> None:
        if plain.stop.is_set() and not patient:
            raise KeyboardInterrupt
        stopped_by.append(number)
        plain.stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)


def _quiet_transformers() -> None:
    """Its progress bars would run through ours."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


@contextmanager
def _logged_to(display: Display) -> Iterator[None]:
    """Warnings go to the display, and afterwards where they went before: its stream may be closed then."""
    root, handler = logging.getLogger(), display.log_handler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    before, level = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.handlers[:] = before
        root.setLevel(level)


if __name__ == "__main__":
    sys.exit(main())
