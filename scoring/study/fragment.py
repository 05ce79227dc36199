"""A study's results as a part of the report, and as a page of their own."""

from __future__ import annotations

import math

from .. import plots
from ..page import Html, chart, facts, join, page, section, table, tag
from .protocol import PARTS, Kind
from .results import Comparison, Fidelity, StudyResults

NAMES: dict[Kind, str] = {"subject": "Subject fidelity", "text": "Text fidelity", "preference": "Preference"}


def fragment(results: StudyResults) -> Html:
    """Tables and charts, for a page whose style is the report's."""
    parts = [tag("p", _lede(results))]
    if results.decided < results.asked:
        missing = (
            f"{results.asked - results.decided} of {results.asked} questions do not have all their ballots "
            "yet; they are not counted."
        )
        parts.append(tag("p", tag("strong", missing), class_="verdict warn"))
    if results.decided:
        parts += [_fidelity_table(results), *(_fidelity_chart(results, kind) for kind in ("subject", "text"))]
        if results.comparisons:
            parts += [tag("h3", NAMES["preference"]), _win_table(results), _win_chart(results)]
        parts += [tag("h3", "Agreement"), _agreement(results), tag("p", _protocol(results), class_="note")]
    return join(parts)


def whole_page(results: StudyResults) -> str:
    """A self-contained HTML file of the results alone. Equal results give equal bytes."""
    return page(
        title=results.title,
        lede="What people said, counted blind.",
        contents={"people": "What people said"},
        body=section("What people said", "people", fragment(results)),
        footer="This file is complete: it needs no network, no server and no scripts. Made by Likeness.",
    )


def _lede(results: StudyResults) -> str:
    changed = f", {results.changed} of them after a change of mind" if results.changed else ""
    return f"{results.raters} raters cast {results.ballots} ballots on {results.asked} questions{changed}."


def _protocol(results: StudyResults) -> str:
    needed = results.raters_per_question // 2 + 1
    return (
        f"A picture is good when at least {needed} of {results.raters_per_question} raters say yes; a pass "
        "counts as bad. Of two pictures the one with more votes wins; equal votes are a tie. Shares have "
        "95 % Wilson intervals over pictures, widened for pictures of the same subject. Protocol: "
        "InstructBooth, section 5.3."
    )


def _fidelity_table(results: StudyResults) -> Html:
    by_method: dict[str, list[Fidelity]] = {}
    for row in results.fidelity:
        by_method.setdefault(row.method, []).append(row)
    rows = [[method, *map(_share, both)] for method, both in by_method.items()]
    head = ["Method", NAMES["subject"], NAMES["text"]]
    return table(head, rows, caption="Pictures that the majority finds good, with 95 % intervals")


def _share(row: Fidelity) -> str:
    return f"{_percent(row.share)} ({_percent(row.low)} to {_percent(row.high)}), {row.good} of {row.total}"


def _fidelity_chart(results: StudyResults, kind: Kind) -> Html:
    bars = [
        plots.Bar(
            label=row.method, value=row.share, low=row.low, high=row.high,
            color=("subject", "text").index(kind),
        )
        for row in results.fidelity if row.kind == kind
    ]  # fmt: skip
    title = f"{NAMES[kind]}: share of pictures that the majority finds good"
    return join([tag("h3", NAMES[kind]), chart(lambda width: plots.bars(bars, title=title, width=width))])


def _win_table(results: StudyResults) -> Html:
    head = ["Against", f"{results.comparisons[0].method} wins", "Ties", "Loses", "Agreement"]
    rows = [[c.rival, _wins(c), str(c.ties), str(c.losses), _kappa(c.kappa)] for c in results.comparisons]
    return table(head, rows, caption="Side by side and blind; the picture with more votes wins")


def _wins(row: Comparison) -> str:
    return (
        f"{_percent(row.win_rate)} ({_percent(row.low)} to {_percent(row.high)}), {row.wins} of {row.total}"
    )


def _win_chart(results: StudyResults) -> Html:
    bars = [
        plots.Bar(label=f"over {c.rival}", value=c.win_rate, low=c.low, high=c.high, color=2)
        for c in results.comparisons
    ]
    title = f"How often {results.comparisons[0].method} is preferred, as a share"
    return chart(
        lambda width: plots.bars(bars, title=title, limit=0.5, width=width), "The dashed line: half."
    )


def _agreement(results: StudyResults) -> Html:
    return facts({f"Fleiss' kappa, {NAMES[kind].lower()}": _kappa(results.kappa[kind]) for kind in PARTS})


def _kappa(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "undefined (all answers equal)"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else "no number"
