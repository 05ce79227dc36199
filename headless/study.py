"""The commands ``likeness study``: make a study, invite raters, hold it, follow it, export what they said."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import Interrupted, LikenessError

if TYPE_CHECKING:
    from ..nodes import host
    from ..scoring.study.ballots import Ballots
    from ..scoring.study.definition import Study
    from .display import Display

PORT = 8190
POLL_S = 0.2  # how soon a stop is noticed


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Fill in ``likeness study``."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    create = actions.add_parser("create", help="write a study's file from folders of pictures")
    _file(create)
    create.add_argument("--method", action="append", default=[], metavar="NAME=FOLDER", dest="methods",
                        help="pictures as FOLDER/SUBJECT/PROMPT/*.png; once for each method")  # fmt: skip
    create.add_argument("--photos", type=Path, required=True, metavar="DIR", help="photos as DIR/SUBJECT/*")
    create.add_argument("--title", default="Which pictures are better?")
    create.add_argument(
        "--compare", default="", metavar="NAME", help="against the others; default: the first"
    )
    create.add_argument("--raters", type=int, default=7, help="of each question; default: 7")
    create.add_argument("--questions-per-rater", type=int, metavar="N", help="default: all")
    create.add_argument("--seed", type=int, default=0, help="of every rater's order")
    create.set_defaults(command=_create)

    invite = actions.add_parser("invite", help="print a link for each new rater; they are shown this once")
    _file(invite)
    which = invite.add_mutually_exclusive_group()
    which.add_argument("--raters", type=int, metavar="N", help="how many; default: all free seats")
    which.add_argument(
        "--replace", type=int, metavar="RATER", help="who gave up: those ballots count no more"
    )
    which.add_argument("--renew", type=int, metavar="RATER", help="who lost the link: the old one stops")
    invite.add_argument("--url", default=f"http://127.0.0.1:{PORT}/", help="where the study is served")
    invite.set_defaults(command=_invite)

    serve = actions.add_parser("serve", help="hold the study until stopped")
    _file(serve)
    serve.add_argument("--listen", default="127.0.0.1", metavar="ADDRESS", help="0.0.0.0: every interface")
    serve.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}; 0: any that is free")
    serve.set_defaults(command=_serve)

    status = actions.add_parser("status", help="how far every rater is")
    _file(status)
    status.set_defaults(command=_status)

    export = actions.add_parser("export", help="write results.json, .csv, .html and ballots.csv")
    _file(export)
    export.add_argument("--output", type=Path, metavar="DIR", help="default: a folder beside the study")
    export.set_defaults(command=_export)


def _file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the study's JSON file")


def _create(arguments: argparse.Namespace, plain: host.Plain, display: Display) -> None:
    from ..scoring.study.definition import draft
    from ..scoring.study.protocol import questions, seats

    methods: dict[str, Path] = {}
    for told in arguments.methods:
        name, _, folder = told.partition("=")
        if not name or not folder or name in methods:
            raise LikenessError(f"--method {told} cannot be used", expected="NAME=FOLDER, each name once")
        methods[name] = Path(folder)
    study = draft(
        arguments.file,
        methods=methods,
        photos=arguments.photos,
        title=arguments.title,
        compare=arguments.compare,
        raters=arguments.raters,
        questions_per_rater=arguments.questions_per_rater,
        seed=arguments.seed,
    )
    asked = questions(study)
    _tell(f"{len(asked)} questions about {len(study.samples)} samples, for {seats(study, len(asked))} raters")


def _invite(arguments: argparse.Namespace, plain: host.Plain, display: Display) -> None:
    from ..scoring.study.results import free_seats, invite

    study, box = _open(arguments.file)
    with box:
        if arguments.renew is not None:
            links = [(arguments.renew, box.renew(arguments.renew))]
        elif arguments.replace is not None:
            rater, token = box.replace(arguments.replace)
            links = [(rater.rater, token)]
        else:
            num = len(free_seats(study, box)) if arguments.raters is None else arguments.raters
            links = [(rater.rater, token) for rater, token in invite(study, box, num)]
    for number, token in links:
        _tell(f"{number}\t{arguments.url.rstrip('/')}/#{token}")


def _serve(arguments: argparse.Namespace, plain: host.Plain, display: Display) -> None:
    from ..scoring.study.site import Site
    from .study_server import serving

    site = Site.open(arguments.file)
    with site.box, serving(site, arguments.listen, arguments.port) as url:
        _tell(f"{site.study.definition.title}: {len(site.questions)} questions at {url}")
        while not plain.stop.is_set():
            time.sleep(POLL_S)
    raise Interrupted("Stopped as asked. Every ballot is saved; the same command goes on.")


def _status(arguments: argparse.Namespace, plain: host.Plain, display: Display) -> None:
    from ..scoring.study.results import free_seats, progress

    study, box = _open(arguments.file)
    with box:
        for told in progress(study, box):
            gone = "  withdrawn: not counted" if told.rater.withdrawn else ""
            _tell(f"rater {told.rater.rater:>3}  {told.answered:>5} of {told.asked}{gone}")
        _tell(
            f"{len(free_seats(study, box))} seats free, {len(box.all())} ballots, {box.num_changes()} changed"
        )


def _export(arguments: argparse.Namespace, plain: host.Plain, display: Display) -> None:
    from ..scoring.study.exporting import save

    study, box = _open(arguments.file)
    with box:
        made = save(study, box, arguments.output or arguments.file.with_suffix(".results"))
    display.finished([{"kind": path.name, "path": str(path)} for path in made])


def _open(path: Path) -> tuple[Study, Ballots]:
    from ..scoring.study.ballots import Ballots
    from ..scoring.study.definition import open_study
    from ..scoring.study.protocol import fingerprint

    study = open_study(path)
    return study, Ballots(study.ballots_path, fingerprint(study))


def _tell(line: str) -> None:
    """Links and numbers are data: they go to standard output."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
