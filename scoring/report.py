"""One HTML file that tells a person what was learned and how well: it opens from disk and asks for nothing.

In the order of a reader's questions: did it work, on which photos, how did learning go, how do the pictures
score, how do I use what was learned, and how could I repeat it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..core.errors import LikenessError
from ..core.paths import write_atomic
from ..subjects.subject import Photo, Subject
from .page import Figure, Html, details, facts, figures_of, gallery, join, page, section, table, tag
from .report_run import prompt_of, run_section
from .report_scores import scores_section
from .runs import Learned, ReportRun
from .scorecard import Scorecard
from .study.fragment import fragment as study_section
from .study.results import StudyResults

PHOTO_EDGE_PX = 420
MAX_PHOTOS = 24  # of a gallery

# kind -> (what it is, ComfyUI's folder, what to do there); {stem}, {name} and {trigger} are filled in
USES = {
    "lora": (
        "LoRA",
        "models/loras",
        "Put Load LoRA between the checkpoint loader and the sampler, choose {name}, and write "
        "\u201c{trigger}\u201d in the prompt.",
    ),
    "embedding": (
        "Embedding",
        "models/embeddings",
        "Write \u201cembedding:{stem}\u201d in the prompt where you would write the noun.",
    ),
    "delta": (
        "Weight difference",
        "models/loras",
        "Put Load LoRA after the checkpoint loader, choose {name}, and write "
        "\u201c{trigger}\u201d in the prompt.",
    ),
}


def write_report(
    path: Path,
    *,
    title: str,
    subject: Subject | None = None,
    runs: Sequence[ReportRun] = (),
    scorecards: Sequence[Scorecard] = (),
    studies: Sequence[StudyResults] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write one self-contained HTML file and return its path. Equal input gives equal bytes.

    ``runs`` come from ``runs.read_run``, ``studies`` from ``study.results.count``; ``notes`` are warnings of
    the caller's own. Everything is optional, but something must be there. Photos that cannot be read any
    more are named in the page, not raised.
    """
    if subject is None and not runs and not scorecards and not studies:
        raise LikenessError(
            "There is nothing to report",
            fix="Connect a subject, a finished run or a scorecard to the report.",
        )
    problems: list[str] = [*notes, *(f"{run.label}: {w}" for run in runs for w in run.warnings)]
    sections = {
        "glance": ("At a glance", _glance(subject, runs, scorecards, problems)),
        "photos": ("Photos", _photos(subject, problems) if subject else None),
        **{f"run-{i}": (run.label, run_section(run, problems)) for i, run in enumerate(runs, 1)},
        "scores": ("Scores", scores_section(scorecards) if scorecards else None),
        **{f"study-{i}": ("What people said", study_section(told)) for i, told in enumerate(studies, 1)},
        "use": ("Use it", _use(runs) if any(run.learned for run in runs) else None),
        "record": ("Record", _record(subject, runs, scorecards)),
    }
    problems += subject.warnings if subject else ()
    warned = (tag("ul", join(tag("li", p) for p in dict.fromkeys(problems)), class_="warnings"),)
    kept = {anchor: (name, body) for anchor, (name, body) in sections.items() if body}
    body = join(section(name, anchor, body) for anchor, (name, body) in kept.items())
    content = page(
        title=title,
        lede=_lede(subject, runs),
        contents={anchor: name for anchor, (name, _) in kept.items()},
        body=join([*(warned if problems else ()), body]),
        footer="This file is complete: it needs no network, no server and no scripts. Made by Likeness.",
    )
    write_atomic(path, content)
    return path


# --- at a glance --------------------------------------------------------------------------------------


def _lede(subject: Subject | None, runs: Sequence[ReportRun]) -> str:
    """What happened, in two or three sentences."""
    sentences = []
    if subject:
        held = (
            f", judged on {_count(len(subject.held_out), 'photo')} it never saw" if subject.held_out else ""
        )
        sentences.append(
            f"A {subject.class_noun}, learned from {_count(len(subject.photos), 'photo')}{held}."
        )
    scored = [run for run in runs if run.base and run.best]
    if scored:
        best = max(scored, key=lambda run: run.best.held_out_dino if run.best else -math.inf)
        assert best.base and best.best
        start = f"{best.label} came closest: on" if len(scored) > 1 else "On"
        sentences.append(
            f"{start} the held-out photos {best.identity_name} went from {best.base.held_out_dino:.2f} to "
            f"{best.best.held_out_dino:.2f}, and {_kept(best)} of the prompt score was kept."
        )
    return " ".join(sentences)


def _glance(
    subject: Subject | None, runs: Sequence[ReportRun], cards: Sequence[Scorecard], problems: list[str]
) -> Html:
    parts = [_before_and_after(subject, runs, problems)]
    if any(run.scores for run in runs):
        head = ["Method", "Held-out, before", "Held-out, best", "Training photos", "Prompt kept", "Best step"]
        rows = [_glance_row(run) for run in runs if run.best]
        names = " and ".join(sorted({run.identity_name for run in runs}))
        parts.append(
            table(head, rows, caption=f"{names} against the photos; 1 is the same picture to the judge")
        )
    elif cards:
        parts.append(tag("p", *(tag("span", card.summary(), class_="line") for card in cards)))
    return join(parts)


def _glance_row(run: ReportRun) -> list[str]:
    best, base = run.best, run.base
    assert best
    return [
        run.label,
        f"{base.held_out_dino:.3f}" if base else "not scored",
        f"{best.held_out_dino:.3f}",
        f"{best.train_dino:.3f}",
        _kept(run) or "not scored",
        f"{run.best_step} of {run.total_steps}" if run.best_step else "not finished",
    ]


def _kept(run: ReportRun) -> str:
    """The share of the untouched model's prompt score that the best step still has."""
    if not run.base or not run.best or not run.base.clip_t > 0:
        return ""
    return f"{run.best.clip_t / run.base.clip_t:.0%}"


def _before_and_after(subject: Subject | None, runs: Sequence[ReportRun], problems: list[str]) -> Html:
    """A real photo, the untouched model's picture, and each method's best: the whole story in one row."""
    figures = []
    if subject and subject.photos:
        figures += figures_of(
            [subject.photos[0].path], PHOTO_EDGE_PX, problems, names=["A real photo"],
            alts=["photo of the subject"],
        )  # fmt: skip
    start = next((run for run in runs if 0 in run.samples), None)
    if start:
        figures += _sample(start, 0, "Before", "the untouched model", problems)
    for run in runs:
        steps = [step for step in run.samples if step > 0]
        if steps:
            best = run.best_step or max(steps)
            nearest = min(steps, key=lambda step: (abs(step - best), step))
            figures += _sample(run, nearest, run.label, f"step {nearest}", problems)
    return gallery(figures, kind="heroes") if len(figures) > 1 else Html("")


def _sample(run: ReportRun, step: int, name: str, detail: str, problems: list[str]) -> list[Figure]:
    prompt = prompt_of(run, 0)
    return figures_of(
        run.samples[step][:1], PHOTO_EDGE_PX, problems, names=[name], details=[detail],
        alts=[f"{prompt}, drawn at step {step} of {run.label}"],
    )  # fmt: skip


# --- photos -------------------------------------------------------------------------------------------


def _photos(subject: Subject, problems: list[str]) -> Html:
    sets = (
        ("Learned from", subject.photos, "Training photo"),
        ("Held out: these only ever judge", subject.held_out, "Held-out photo"),
    )
    parts = []
    for heading, photos, name in sets:
        if photos:
            shown = photos[:MAX_PHOTOS]
            rest = f", {len(shown)} of them shown" if len(photos) > len(shown) else ""
            parts.append(tag("h3", f"{heading} ({len(photos)}{rest})"))
            parts.append(gallery(_photo_figures(shown, name, subject, problems)))
    return join(parts)


def _photo_figures(photos: Sequence[Photo], name: str, subject: Subject, problems: list[str]) -> list[Figure]:
    captions = [(photo.caption or "").replace("{}", subject.class_noun) for photo in photos]
    return figures_of(
        [photo.path for photo in photos], PHOTO_EDGE_PX, problems, details=captions,
        alts=[f"{name}: {caption or subject.class_noun}" for caption in captions],
    )  # fmt: skip


# --- use ----------------------------------------------------------------------------------------------


def _use(runs: Sequence[ReportRun]) -> Html:
    return join(_card(run, run.learned) for run in runs if run.learned)


def _card(run: ReportRun, learned: Learned) -> Html:
    what, folder, how = USES.get(learned.kind, ("File", "", ""))
    words = {"name": learned.path.name, "stem": learned.path.stem, "trigger": learned.trigger}
    steps = []
    if run.family == "toybox":
        steps.append("Its base model is Toybox, which is part of Likeness: no download is needed.")
    elif folder:
        steps.append(f"Copy {learned.path.name} to ComfyUI/{folder}.")
        steps.append(how.format(**words))
    steps.append(
        f"In a Likeness graph: Load Concept, Apply Concept, Generate, with \u201c{learned.trigger}\u201d."
    )
    where = (
        learned.path.relative_to(run.folder.parent) if learned.path.is_relative_to(run.folder.parent) else ""
    )
    return tag(
        "div",
        tag("h3", f"{run.label}: {what}"),
        tag("p", tag("code", str(where or learned.path.name))),
        tag("ol", join(tag("li", step) for step in steps)),
        facts({"Write in prompts": learned.trigger, "Size": _size(learned.path), "sha256": learned.sha256}),
        class_="card",
    )


def _size(path: Path) -> str:
    try:
        num_bytes = path.stat().st_size
    except OSError:
        return "missing"
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:.1f} kB"


# --- record -------------------------------------------------------------------------------------------


def _record(subject: Subject | None, runs: Sequence[ReportRun], cards: Sequence[Scorecard]) -> Html:
    """Everything that would be needed to repeat this, folded away."""
    parts = []
    if subject:
        parts.append(details("The subject", facts(_subject_facts(subject))))
    for run in runs:
        parts.append(details(f"{run.label}: settings", facts(run.settings)))
        parts.append(details(f"{run.label}: provenance", facts(run.provenance)))
    for card in cards:
        parts.append(
            details(f"{card.label or 'Scores'}: protocol", facts(dict(_flat_protocol(card.protocol))))
        )
    return join(parts)


def _subject_facts(subject: Subject) -> Mapping[str, str]:
    return {
        "Name": subject.name,
        "Class noun": subject.class_noun,
        "Identifier": subject.identifier,
        "Description": subject.description or "none",
        "Training photos": str(len(subject.photos)),
        "Held-out photos": str(len(subject.held_out)),
        "Content hash": subject.content_hash,
    }


def _flat_protocol(protocol: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in protocol.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _flat_protocol(value, f"{name}, ")
        else:
            yield name, str(value)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
