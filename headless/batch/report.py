"""What a batch came to: results.csv and results.json with every job, report.html to read."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...core.paths import atomic_writer, write_atomic
from ...core.tables import csv_text, not_a_formula
from ...scoring import plots
from ...scoring.page import Html, chart, facts, join, page, section, table, tag
from ...scoring.scorecard import METRICS
from .manifest import DONE, FAILED, RUNNING, WAITING, Manifest, Record
from .screen import label
from .sweep import Candidate, Ranking

MOST_FAILED, MOST_SHOWN, MOST_RANKED = 200, 500, 50  # lines of the page; the tables have all
MOST_LABELLED = 12  # dots of the plot with words beside them


def write_results(
    folder: Path, manifest: Manifest, *, title: str, ranking: Ranking | None = None
) -> list[Path]:
    """Write all three, each whole or not at all, in memory that does not grow with the jobs."""
    paths = [folder / "results.csv", folder / "results.json", folder / "report.html"]
    with atomic_writer(paths[0]) as file:
        for text in csv_lines(manifest):
            file.write(text.encode())
    with atomic_writer(paths[1]) as file:
        for text in json_parts(manifest, ranking):
            file.write(text.encode())
    write_atomic(paths[2], html(manifest, title, ranking))
    return paths


# --- tables ---------------------------------------------------------------------------------------------


def csv_lines(manifest: Manifest) -> Iterator[str]:
    """One line per job and scorecard; one without scores where there is none."""
    varied = sorted({name for record in manifest.records() for name in record.settings})
    head = ["number", "key", "state", "method", "subject", *varied, "card", *METRICS]
    yield _csv([*head, "attempts", "seconds", "slot", "made", "place", "reason"])
    for record in manifest.records():
        for card in record.scores or [{}]:
            settings = [record.settings.get(name, "") for name in varied]
            yield _csv([
                record.number, record.key, record.state, record.method, record.subject, *settings,
                card.get("label", ""), *(card.get(metric) for metric in METRICS), record.attempts,
                None if record.seconds is None else round(record.seconds, 3), record.slot,
                " ".join(str(item["path"]) for item in record.made), record.place, record.reason,
            ])  # fmt: skip


def _csv(cells: Sequence[Any]) -> str:
    return csv_text([[not_a_formula(cell) if isinstance(cell, str) else cell for cell in cells]])


def json_parts(manifest: Manifest, ranking: Ranking | None) -> Iterator[str]:
    head: dict[str, Any] = {"counts": manifest.counts()}
    if ranking is not None:
        head |= {"rule": ranking.rule, "ranking": [candidate.plain() for candidate in ranking.candidates]}
    yield json.dumps(head, indent=1)[:-2] + ',\n "jobs": ['
    for number, record in enumerate(manifest.records()):
        yield ("," if number else "") + "\n  " + json.dumps(_plain(record))
    yield "\n ]\n}\n"


def _plain(record: Record) -> dict[str, Any]:
    names = (
        "number", "key", "state", "method", "subject", "settings", "scores", "made", "attempts", "seconds",
        "slot", "place", "reason",
    )  # fmt: skip
    return {name: getattr(record, name) for name in names}


# --- the page -------------------------------------------------------------------------------------------


def html(manifest: Manifest, title: str, ranking: Ranking | None) -> str:
    counts = manifest.counts()
    sections = {
        "glance": ("At a glance", _glance(manifest, counts)),
        "best": ("Best of", _best(ranking) if ranking and ranking.candidates else None),
        "failed": ("Failed", _failed(manifest) if counts[FAILED] else None),
        "jobs": ("Jobs", _jobs(manifest, sum(counts.values()))),
    }
    kept = {anchor: (name, body) for anchor, (name, body) in sections.items() if body is not None}
    return page(
        title=title,
        lede=_lede(counts, ranking),
        contents={anchor: name for anchor, (name, _) in kept.items()},
        body=join(section(name, anchor, body) for anchor, (name, body) in kept.items()),
        footer="Every job is in results.csv and results.json beside this file. Made by Likeness.",
    )


def _lede(counts: dict[str, int], ranking: Ranking | None) -> str:
    told = f"{counts[DONE]} of {sum(counts.values())} jobs are done"
    told += f", {counts[FAILED]} failed." if counts[FAILED] else "."
    left = counts[WAITING] + counts[RUNNING]
    told += f" {left} are left: the same command goes on with them." if left else ""
    if ranking and ranking.winner:
        told += f" The best: {ranking.winner.label}."
    return told


def _glance(manifest: Manifest, counts: dict[str, int]) -> Html:
    seconds = sum(record.seconds or 0.0 for record in manifest.records(DONE))
    retried = sum(record.attempts > 1 for record in manifest.records())
    return facts(
        {
            "Jobs": str(sum(counts.values())),
            "Done": str(counts[DONE]),
            "Failed": str(counts[FAILED]),
            "Tried more than once": str(retried),
            "Time of all jobs": f"{seconds:.1f} s",
            "Mean": f"{seconds / counts[DONE]:.2f} s" if counts[DONE] else "none is done",
        }
    )


def _best(ranking: Ranking) -> Html:
    head = ["Setting", ranking.identity_name, "95 %", ranking.prompt_name, "Subjects", "Jobs", ""]
    rows = [_best_row(candidate, ranking) for candidate in ranking.candidates[:MOST_RANKED]]
    dots = [
        plots.Dot(
            x=c.prompt, y=c.identity, label=c.label if n < MOST_LABELLED else "", color=0 if c.on_front else 4
        )
        for n, c in enumerate(ranking.candidates)
    ]
    draw = partial(_pareto, dots, ranking)
    note = "Up and to the right is better. The front (first colour): nothing else is better in both."
    return join(
        [
            tag("p", ranking.rule),
            table(head, rows, caption="Means over seeds, then over subjects; intervals over subjects"),
            chart(draw, note),
        ]
    )


def _pareto(dots: Sequence[plots.Dot], ranking: Ranking, width: int) -> str:
    return plots.scatter(
        dots,
        title="Identity against prompt fidelity",
        x_label=ranking.prompt_name,
        y_label=ranking.identity_name,
        width=width,
    )


def _best_row(candidate: Candidate, ranking: Ranking) -> list[str]:
    low, high = candidate.interval
    mark = "best" if candidate is ranking.winner else "on the front" if candidate.on_front else ""
    spread = f"{low:.3f} to {high:.3f}" if low == low else "one subject"  # NaN is unlike itself
    return [
        candidate.label, f"{candidate.identity:.3f}", spread, f"{candidate.prompt:.3f}",
        str(candidate.subjects), str(candidate.jobs), mark,
    ]  # fmt: skip


def _failed(manifest: Manifest) -> Html:
    records = itertools.islice(manifest.records(FAILED), MOST_FAILED)
    rows = [[label(r), r.place, str(r.attempts), r.reason] for r in records]
    return table(["Job", "From", "Tries", "Why"], rows, caption="What failed, and why")


def _jobs(manifest: Manifest, total: int) -> Html:
    rows = [
        [label(r), r.state, "" if r.seconds is None else f"{r.seconds:.1f} s", _scores(r), _made(r)]
        for r in itertools.islice(manifest.records(), MOST_SHOWN)
    ]
    caption = f"The first {MOST_SHOWN} of {total} jobs" if total > MOST_SHOWN else "Every job"
    return table(["Job", "State", "Time", "Scores", "Made"], rows, caption=caption)


def _scores(record: Record) -> str:
    return "; ".join(
        ", ".join(
            f"{card.get('names', {}).get(metric, metric)} {card[metric]:.3f}"
            for metric in METRICS
            if card.get(metric) is not None
        )
        for card in record.scores
    )


def _made(record: Record) -> str:
    return ", ".join(Path(str(item["path"])).name for item in record.made[:4])
