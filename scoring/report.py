"""One HTML file that tells a person what was learned and how well: it opens from disk and asks for nothing.

In the order of a reader's questions: did it work, on which photos, how did learning go, how do the pictures
score, how do I use what was learned, and how could I repeat it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from ..core.errors import LikenessError
from ..core.paths import write_atomic
from ..subjects.subject import Photo, Subject
from . import plots
from .page import Figure, Html, chart, details, facts, gallery, join, page, section, table, tag
from .runs import Learned, ReportRun
from .scorecard import METRICS, Scorecard
from .study.fragment import fragment as study_section
from .study.results import StudyResults
from .thumbnails import Source, thumbnail

PHOTO_EDGE_PX = 420
SAMPLE_EDGE_PX = 320
MAX_SAMPLE_STEPS = 8  # of a film strip: more are too small to see
MAX_PHOTOS = 24  # of a gallery
COLORS = {"clip_t": 2, "clip_i": 1, "dino": 0}  # into plots.SERIES
HELD_OUT, TRAIN, TEXT, LOSS = 0, 1, 2, 4
UNBROKEN = str.maketrans({" ": "\u00a0", "-": "\u2011"})  # a name and its number stay on one line

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
        **{f"run-{i}": (run.label, _run(run, problems)) for i, run in enumerate(runs, 1)},
        "scores": ("Scores", _scores(scorecards) if scorecards else None),
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
        figures += _figures(
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
    prompt = _prompt(run, 0)
    return _figures(
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
    return _figures(
        [photo.path for photo in photos], PHOTO_EDGE_PX, problems, details=captions,
        alts=[f"{name}: {caption or subject.class_noun}" for caption in captions],
    )  # fmt: skip


def _figures(
    sources: Sequence[Source],
    edge: int,
    problems: list[str],
    *,
    alts: Sequence[str],
    names: Sequence[str] = (),
    details: Sequence[str] = (),
    marks: Iterable[int] = (),
) -> list[Figure]:
    """A figure of each source that can still be read; of the others, a line among the problems."""
    made, marked = [], set(marks)
    for i, source in enumerate(sources):
        try:
            image = thumbnail(source, edge=edge)
        except LikenessError as error:
            problems.append(str(error))
            continue
        name, detail = (names[i] if names else ""), (details[i] if details else "")
        made.append(Figure(image=image, alt=alts[i], name=name, detail=detail, mark=i in marked))
    return made


# --- one run ------------------------------------------------------------------------------------------


def _run(run: ReportRun, problems: list[str]) -> Html:
    parts = [_verdict(run)]
    if run.scores:
        parts.append(chart(lambda width: _held_out_chart(run, width), _chart_note(run)))
    small = []
    if run.scores:
        small.append(chart(lambda width: _prompt_chart(run, width)))
    if run.loss:
        small.append(chart(lambda width: _loss_chart(run, width)))
    if small:
        parts.append(tag("div", *small, class_="pair"))
    if run.samples:
        parts.append(tag("h3", "Samples while it learned"))
        parts.append(_film(run, problems))
    return join(parts)


def _verdict(run: ReportRun) -> Html:
    overfit = run.turning_step is not None
    if not run.verdict:
        words = "Training ended without a held-out verdict." if run.best_step else "Training is not finished."
    elif overfit:
        words = f"Overfitting since step {run.turning_step}"
        words += f"; step {run.best_step} was kept." if run.best_step else "."
    else:
        words = f"No overfitting seen; step {run.best_step} was kept."
    rule = tag("span", f"Rule: {run.rule}.", class_="detail") if run.rule else Html("")
    return tag(
        "p", tag("strong", words), Html(" "), rule, class_="verdict warn" if overfit else "verdict good"
    )


def _held_out_chart(run: ReportRun, width: int) -> str:
    held_out = [(score.step, score.held_out_dino) for score in run.scores]
    train = [(score.step, score.train_dino) for score in run.scores]
    return plots.curves(
        [
            plots.Series(name="held-out photos", points=held_out, color=HELD_OUT, markers=True),
            plots.Series(name="training photos", points=train, color=TRAIN, style="dashed", markers=True),
        ],
        title=f"{run.identity_name} over training steps, held-out and training photos. {run.verdict}",
        x_label="training step",
        y_label=run.identity_name if width > 500 else "",
        marks=_marks(run),
        width=width,
    )


def _marks(run: ReportRun) -> list[plots.Mark]:
    turn, best = run.turning_step, run.best_step
    if turn is not None and turn == best:
        return [plots.Mark(x=turn, text="kept; overfitting begins")]
    marks = [plots.Mark(x=best, text="kept")] if best else []
    return marks + ([plots.Mark(x=turn, text="overfitting begins")] if turn is not None else [])


def _chart_note(run: ReportRun) -> str:
    start = " Step 0 is the untouched model, asked for the noun." if run.base else ""
    return (
        f"{run.identity_name}: likeness of pictures, drawn from each photo's caption, to that photo. While "
        f"both lines rise it learns the subject; when only the dashed one holds, it learns the photos.{start}"
    )


def _prompt_chart(run: ReportRun, width: int) -> str:
    points = [(s.step, s.clip_t) for s in run.scores]
    return plots.curves(
        [plots.Series(name=run.text_name, points=points, color=TEXT, markers=True)],
        title=f"{run.text_name}: does the picture still show what the prompt says",
        x_label="training step",
        y_label=f"{run.text_name}: follows the prompt",
        width=_half(width),
        height=240,
    )


def _loss_chart(run: ReportRun, width: int) -> str:
    smooth = plots.smoothed(run.loss)
    return plots.curves(
        [
            plots.Series(name="loss", points=run.loss, color=LOSS, style="faint"),
            plots.Series(name="moving mean", points=smooth, color=LOSS),
        ],
        title=f"Training loss over {len(run.loss)} steps",
        x_label="training step",
        y_label="loss, and its moving mean",
        width=_half(width),
        height=240,
    )


def _half(width: int) -> int:
    """Charts that stand side by side on a wide page are drawn for half of it."""
    return width if width < 500 else 480


def _film(run: ReportRun, problems: list[str]) -> Html:
    """A row per prompt, a picture per step."""
    steps = _spread(sorted(run.samples), run.best_step)
    best = min(steps, key=lambda step: (abs(step - (run.best_step or -1)), step)) if run.best_step else None
    rows = []
    for i in range(max(len(pictures) for pictures in run.samples.values())):
        there = [step for step in steps if i < len(run.samples[step])]
        figures = _figures(
            [run.samples[step][i] for step in there], SAMPLE_EDGE_PX, problems,
            names=["before" if step == 0 else f"step {step}" for step in there],
            alts=[f"{_prompt(run, i)}, at step {step}" for step in there],
            marks=[k for k, step in enumerate(there) if step == best],
        )  # fmt: skip
        rows.append(tag("p", _prompt(run, i), class_="prompt"))
        rows.append(gallery(figures, kind="strip"))
    return join(rows)


def _prompt(run: ReportRun, number: int) -> str:
    told = run.sample_prompts[number] if number < len(run.sample_prompts) else f"sample prompt {number + 1}"
    return told.replace("{}", run.learned.trigger if run.learned and run.learned.trigger else "the subject")


def _spread(steps: Sequence[int], best: int | None) -> list[int]:
    """At most MAX_SAMPLE_STEPS of them, evenly, with the first, the last and the one nearest the best."""
    if len(steps) <= MAX_SAMPLE_STEPS:
        return list(steps)
    last = len(steps) - 1
    picked = {round(i * last / (MAX_SAMPLE_STEPS - 1)) for i in range(MAX_SAMPLE_STEPS)}
    if best is not None:
        near = min(range(len(steps)), key=lambda i: abs(steps[i] - best))
        if near not in picked:
            picked.remove(min(picked - {0, last}, key=lambda i: abs(i - near)))
            picked.add(near)
    return [steps[i] for i in sorted(picked)]


# --- scores -------------------------------------------------------------------------------------------


def _scores(cards: Sequence[Scorecard]) -> Html:
    return join(part for group in _comparable(cards) for part in _score_group(group))


def _comparable(cards: Sequence[Scorecard]) -> list[list[Scorecard]]:
    """Cards of the same judges stand together; others are not to be compared and get a table of their own."""
    groups: dict[str, list[Scorecard]] = {}
    for card in cards:
        metrics = card.protocol.get("metrics", {})
        groups.setdefault(repr(sorted((k, sorted(v.items())) for k, v in metrics.items())), []).append(card)
    return list(groups.values())


def _score_group(cards: Sequence[Scorecard]) -> Iterator[Html]:
    head = ["", "Pictures", *(cards[0].name(metric) for metric in METRICS)]
    rows = [
        [card.label or "scored", str(len(card.rows)), *(_mean(card, metric) for metric in METRICS)]
        for card in cards
    ]
    over = sorted({m.interval_over for c in cards for m in c.means.values()} - {"nothing"})
    yield table(
        head, rows, caption=f"Means with 95 % intervals over {' or '.join(over)}" if over else "Means"
    )
    for metric in METRICS:
        yield tag("h3", f"{cards[0].name(metric)}: {_meaning(metric, cards[0])}")
        yield chart(partial(_bars, cards, metric))
    for card in cards:
        if card.thumbnails:
            yield tag("h3", f"{card.label or 'Scored'}: the pictures")
            yield gallery(_scored_figures(card))


def _mean(card: Scorecard, metric: str) -> str:
    mean = card.means[metric]
    if not math.isfinite(mean.value):
        return "no number"
    interval = f" ({mean.low:.3f} to {mean.high:.3f})" if math.isfinite(mean.low) else ""
    skipped = f", {mean.skipped} skipped" if mean.skipped else ""
    return f"{mean.value:.3f}{interval}{skipped}"


def _bars(cards: Sequence[Scorecard], metric: str, width: int) -> str:
    means = [(card.label or "scored", card.means[metric]) for card in cards]
    return plots.bars(
        [
            plots.Bar(label=label, value=mean.value, low=mean.low, high=mean.high, color=COLORS[metric])
            for label, mean in means
        ],
        title=f"{cards[0].name(metric)} of each row",
        width=width,
    )


def _meaning(metric: str, card: Scorecard) -> str:
    kinds = sorted({str(r.get("kind", "")) for r in card.protocol.get("references", {}).values()})
    photos = f"the {kinds[0].replace(' ', '-')} photos" if len(kinds) == 1 else "the photos"
    return {
        "clip_t": "does the picture show what the prompt says",
        "clip_i": f"does it look like {photos}",
        "dino": f"is it the same individual as in {photos}",
    }[metric]


def _scored_figures(card: Scorecard) -> list[Figure]:
    figures = []
    for number, image in sorted(card.thumbnails.items()):
        row = card.rows[number]
        finite = [m for m in METRICS if math.isfinite(row.scores.get(m, math.nan))]
        scores = ", ".join(f"{card.name(m)} {row.scores[m]:.2f}".translate(UNBROKEN) for m in finite)
        figures.append(Figure(image=image, alt=f"drawn for: {row.prompt}", name=row.prompt, detail=scores))
    return figures


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
