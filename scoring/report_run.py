"""The report's part on one run: did it overfit, how its scores and its loss went, what it drew on the way."""

from __future__ import annotations

from collections.abc import Sequence

from . import plots
from .page import Html, chart, figures_of, gallery, join, tag
from .runs import ReportRun

SAMPLE_EDGE_PX = 320
MAX_SAMPLE_STEPS = 8  # of a film strip: more are too small to see
HELD_OUT, TRAIN, TEXT, LOSS = 0, 1, 2, 4  # into plots.SERIES


def run_section(run: ReportRun, problems: list[str]) -> Html:
    """Its verdict, its curves and its film. Pictures that cannot be read go among the ``problems``."""
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
        figures = figures_of(
            [run.samples[step][i] for step in there], SAMPLE_EDGE_PX, problems,
            names=["before" if step == 0 else f"step {step}" for step in there],
            alts=[f"{prompt_of(run, i)}, at step {step}" for step in there],
            marks=[k for k, step in enumerate(there) if step == best],
        )  # fmt: skip
        rows.append(tag("p", prompt_of(run, i), class_="prompt"))
        rows.append(gallery(figures, kind="strip"))
    return join(rows)


def prompt_of(run: ReportRun, number: int) -> str:
    """The ``number``-th sample prompt with the subject's word in it."""
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
