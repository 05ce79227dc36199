"""``python -m likeness.benchmarks.table``: docs/benchmarks.md, and docs/batch.md's costs, from results."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import LikenessError
from ..core.paths import write_atomic
from . import costs
from .__main__ import BENCHES, RESULTS, ROOT

DOC = ROOT / "docs" / "benchmarks.md"
BATCH_DOC = ROOT / "docs" / "batch.md"
COSTS = ("<!-- costs: python -m likeness.benchmarks.table -->\n", "<!-- end of costs -->\n")
HEAD = """# Benchmarks

Generated from `benchmarks/results/` by `python -m likeness.benchmarks.table`; do not edit. Each is run again
by the command above its table, in a small form with `QUICK=1` (whose numbers are not shown here).
"""


def render(results: Path = RESULTS) -> str:
    """The document, in the order of ``BENCHES``. Benches without a full result are not mentioned."""
    parts = [_part(name, record) for name, record in _records(results).items()]
    return "\n".join([HEAD, *(parts or ["No full result is recorded yet.\n"])])


def with_costs(document: str, results: Path = RESULTS) -> str:
    """docs/batch.md with what stands between the marks of COSTS written anew."""
    before, rest = document.split(COSTS[0])
    _, after = rest.split(COSTS[1])
    return before + COSTS[0] + costs.render(_records(results)) + COSTS[1] + after


def _records(results: Path) -> dict[str, dict[str, Any]]:
    paths = {name: results / f"{name}.json" for name in BENCHES}
    return {name: _read(path) for name, path in paths.items() if path.is_file()}


def _read(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if record["quick"]:
            raise LikenessError(f"{path} is a quick result", fix="Run the benchmark without --quick.")
        return record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LikenessError(f"{path} is not a benchmark's result: {error}") from error


def _part(name: str, record: Mapping[str, Any]) -> str:
    rows = [
        (
            b["name"],
            _number(b["value"]),
            f"{b['op']} {b['bar']:g}",
            "holds" if b["holds"] else "**does not hold**",
        )
        for b in record["bars"]
    ]
    every = _table(("number", "value"), sorted(_flat(record["numbers"])))
    shown = [_table(("what must hold", "measured", "bar", ""), rows), _fold("All numbers", every)]
    return "\n".join(
        [
            f"## {name}\n\n{BENCHES[name].what}.\n\n    make bench NAME={name}\n",
            *(shown if rows else [every]),
            _made(record),
        ]
    )


def _made(record: Mapping[str, Any]) -> str:
    machine, versions = record["machine"], record["versions"]
    where = f"{machine['gpu']}, {machine['processor']}" if machine["gpu"] else machine["processor"]
    commit = record["commit"][:12] + "+" * record["commit"].endswith("+")
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "diffusers", "transformers"))
    return (
        f"Commit `{commit}`, {where}, {machine['cores']} cores, {packages}, "
        f"{record['seconds']:.0f} s; seeds {_cell(record['seeds'])}.\n"
    )


def _flat(numbers: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in numbers.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}, ")
        elif not isinstance(value, list) or len(value) <= 8:  # longer lists are curves: see the JSON
            rows.append((f"{prefix}{key}", _cell(value)))
    return rows


def _fold(summary: str, content: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{content}\n</details>\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return (
        "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        + "\n"
    )


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return _number(value) if isinstance(value, (int, float)) or value is None else str(value)


def _number(value: float | None) -> str:
    if value is None:
        return "no number"
    return str(value) if isinstance(value, (int, bool)) else f"{value:.4g}"


def main() -> int:
    write_atomic(DOC, render())
    write_atomic(BATCH_DOC, with_costs(BATCH_DOC.read_text(encoding="utf-8")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
