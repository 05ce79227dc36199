from __future__ import annotations

import json
import math
import sys
import types
from pathlib import Path

import pytest
from likeness.backbones.toybox import card
from likeness.benchmarks import __main__ as runner
from likeness.benchmarks import bar, costs, gen4gen, learning, table
from likeness.benchmarks.__main__ import Bench
from likeness.core.errors import LikenessError


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Bench:
    def run(quick: bool) -> dict[str, object]:
        bars = [bar("speed | ratio", value=1.5 if not quick else 1.1, op=">=", bar=1.3)]
        return {"numbers": {"ratio": {"mean": 1.5, "interval": [1.4, 1.6]}}, "bars": bars, "seeds": [0, 1]}

    module = types.ModuleType("likeness.benchmarks.fake")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "likeness.benchmarks.fake", module)
    return Bench("fake", "A measurement that is not one", "1.3")


def test_a_result_records_its_surroundings_and_nothing_of_the_place(fake: Bench, tmp_path: Path) -> None:
    result, path = runner.measure("fake", fake, quick=False, results=tmp_path)
    assert path == tmp_path / "fake.json" and json.loads(path.read_text()) == result
    assert result["versions"]["torch"] and result["machine"]["cores"] >= 1 and result["commit"]
    assert str(Path.home()) not in path.read_text() and str(runner.ROOT) not in path.read_text()


def test_a_quick_result_never_replaces_a_full_one(fake: Bench, tmp_path: Path) -> None:
    full = runner.measure("fake", fake, quick=False, results=tmp_path)[1].read_text()
    _, quick = runner.measure("fake", fake, quick=True, results=tmp_path)
    assert quick == tmp_path / "quick" / "fake.json"
    assert (tmp_path / "fake.json").read_text() == full


def test_bars_hold_or_fail(fake: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert bar("a", value=0.9, op=">=", bar=0.9)["holds"]
    assert not bar("a", value=0.9, op=">", bar=0.9)["holds"]
    assert bar("a", value=math.nan, op="<=", bar=1) | {"value": None, "holds": False} == bar(
        "a", value=math.nan, op="<=", bar=1
    )
    monkeypatch.setattr(runner, "available", lambda: {"fake": fake})
    measure = runner.measure
    monkeypatch.setattr(runner, "measure", lambda *a, quick: measure(*a, quick=quick, results=tmp_path))
    assert runner.main(["fake"]) == 0
    assert runner.main(["fake", "--quick"]) == 1
    assert runner.main(["no such"]) == 2


def test_only_benches_that_exist_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main([]) == 0
    here = {path.stem for path in Path(runner.__file__).parent.glob("*.py")}
    assert {bench.module for bench in runner.available().values()} == here & {
        b.module for b in runner.BENCHES.values()
    }


def test_the_document_is_made_from_the_results(
    fake: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "No full result" in table.render(tmp_path)
    monkeypatch.setitem(runner.BENCHES, "fake", fake)
    runner.measure("fake", fake, quick=False, results=tmp_path)
    text = table.render(tmp_path)
    assert "| speed \\| ratio | 1.5 | >= 1.3 | holds |" in text
    assert "| ratio, interval | 1.4, 1.6 |" in text and "make bench NAME=fake" in text
    (tmp_path / "fake.json").write_text("{")
    with pytest.raises(LikenessError, match=r"fake\.json"):
        table.render(tmp_path)


def test_the_committed_documents_are_in_step() -> None:
    assert table.DOC.read_text(encoding="utf-8") == table.render(), "run python -m likeness.benchmarks.table"
    batches = table.BATCH_DOC.read_text(encoding="utf-8")
    assert batches == table.with_costs(batches), "run python -m likeness.benchmarks.table"


def test_the_costs_of_batches_follow_from_the_results() -> None:
    killed = {"in the results once": 24, "begun again": 2, "run before the kill": 8}
    place = {
        costs.IDLE: {"jobs": 1000, "s per job": 0.036},
        costs.KILLED: killed,
        **{what: {"median": 1.9} for what in costs.CHORES},
    }
    here = {**place, "manifest": {"100,000 rows": {"peak, MiB": 491.2, "planning, s": 58.4}}}
    there = {"ComfyUI": place, "Ray": place, costs.LEARNED: 90.0}
    machine = {"cores": 2, "processor": "a processor"}
    records = {
        "batch": {"numbers": here, "machine": machine},
        "batch-targets": {"numbers": there, "machine": machine},
    }
    text = costs.render(records)
    assert "| overhead of a job that does nothing, one worker (1,000 jobs) | 36.0 ms |" in text
    assert "are 10,000 jobs. What the batch adds to them is 0.1 hours" in text
    assert "| 90 s, as measured | 250.1 | 25.0 | 2.5 |" in text
    assert "make bench NAME=batch-targets" in costs.render({"batch": records["batch"]})


def test_the_card_is_recorded_as_bars(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(card, "card", lambda **given: {**card.BARS, "noun": 0.5, "judge_noun": 0.9})
    result, path = runner.measure("toybox-card", runner.BENCHES["toybox-card"], quick=False, results=tmp_path)
    assert path.exists() and result["numbers"]["judge_noun"] == 0.9
    assert [b["name"] for b in result["bars"] if not b["holds"]] == ["noun"]


def test_the_overfit_curve_is_read_from_its_peak() -> None:
    found = [
        (0.5, 0.4, 0.6),
        (0.9, 0.8, 0.5),
        (0.9, 0.7, 0.3),
        (0.8, 0.6, 0.2),
        (1.0, 0.7, 0.3),
        (0.9, 0.6, 0.2),
    ]
    curve = [dict(zip(("train", "held_out", "clip_t"), scores, strict=True)) for scores in found]
    change = learning.after_the_peak(curve)
    assert change == pytest.approx({"train": 0.0, "held_out": -0.15, "clip_t": -0.25})


def test_cp_clip_ranks_rendered_truth() -> None:
    """Both right above one missing above both wrong, and no box for two subjects."""
    assert gen4gen.told_apart(0, 3) == (3, 0)
