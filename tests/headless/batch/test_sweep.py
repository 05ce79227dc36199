"""Which setting is best: grouping, averaging, the rule and the front; and the files that say so."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from likeness.core.errors import LikenessError
from likeness.headless.batch.checking import Job
from likeness.headless.batch.manifest import Manifest
from likeness.headless.batch.report import write_results
from likeness.headless.batch.sweep import rank, read_sweep
from likeness.headless.batch.targets import Result
from likeness.headless.graph import Node

# rank -> subject -> [(identity, prompt) of each seed]
SCORES = {
    4: {"rex": [(0.4, 0.30), (0.6, 0.30)], "tom": [(0.7, 0.32)]},  # 0.6, 0.31
    8: {"rex": [(0.8, 0.29)], "tom": [(0.8, 0.29)]},  # 0.8, 0.29: keeps 93 %
    16: {"rex": [(0.9, 0.20)], "tom": [(0.9, 0.20)]},  # 0.9, 0.20: keeps 65 %
    32: {"rex": [(0.5, 0.25)], "tom": [(0.5, 0.25)]},  # beaten by 4 and by 8 in both
}


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    manifest = Manifest(tmp_path / "m.sqlite")
    jobs, cards = [], []
    for setting, subjects in SCORES.items():
        for subject, seeds in subjects.items():
            for seed, (identity, prompt) in enumerate(seeds):
                values = {"T.rank": setting, "6.seed": seed, "LikenessLoadSubject.folder": f"/{subject}"}
                jobs.append(Job(key=f"{setting}{subject}{seed}", settings=values, subject=subject))
                cards.append({"label": "", "dino": identity, "clip_t": prompt, "clip_i": None})
    manifest.plan([*jobs, Job(key="=f", settings={"T.rank": "=1+1"}, place="line 9")])
    for card in cards:
        record = manifest.take("a")
        assert record
        manifest.done(record.number, Result(scores=[card]), 2.0)
    record = manifest.take("a")
    assert record
    manifest.failed(record.number, "<b>no photos</b>", 0.1)
    return manifest


def test_seeds_are_averaged_within_subjects_then_subjects(manifest: Manifest) -> None:
    ranking = rank(manifest, ["6.seed"])
    four = next(c for c in ranking.candidates if c.settings == {"T.rank": 4})
    assert math.isclose(four.identity, 0.6) and math.isclose(four.prompt, 0.31)
    assert (four.subjects, four.jobs) == (2, 3)


def test_the_best_keeps_the_prompts(manifest: Manifest) -> None:
    ranking = rank(manifest, ["6.seed"])
    assert [c.settings["T.rank"] for c in ranking.candidates] == [8, 4, 16, 32]
    assert [c.settings["T.rank"] for c in ranking.candidates if c.on_front] == [8, 4, 16]
    assert ranking.winner and ranking.winner.label == "rank=8"
    free = rank(manifest, ["6.seed"], keep_prompts=0.0)
    assert free.winner and free.winner.settings == {"T.rank": 16}


def test_the_report_has_every_job_and_runs_nothing(manifest: Manifest, tmp_path: Path) -> None:
    table, data, page = write_results(
        tmp_path / "r", manifest, title="<i>", ranking=rank(manifest, ["6.seed"])
    )
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert len(rows) == 10 and {row["state"] for row in rows} == {"done", "failed"}
    assert rows[-1]["T.rank"] == "'=1+1" and rows[0]["dino"] == "0.4"
    record = json.loads(data.read_text())
    assert record["counts"]["failed"] == 1 and len(record["jobs"]) == 10
    assert record["ranking"][0]["settings"] == {"T.rank": 8}
    html = page.read_text()
    assert "rank=8" in html and "<svg" in html and "&lt;b&gt;no photos" in html and "<b>no photos" not in html
    assert "9 of 10 jobs are done, 1 failed. The best: rank=8." in html


def sweep_file(folder: Path, **parts: Any) -> Path:
    path = folder / "s.json"
    path.write_text(json.dumps(parts, indent=1))
    return path


def test_a_sweep_is_methods_times_settings_times_subjects_times_seeds(tmp_path: Path) -> None:
    for name in ("rex", "tom"):
        (tmp_path / "subjects" / name).mkdir(parents=True)
    methods = {"A": {"workflow": "a.json", "grid": {"T.rank": [4, 8]}}, "B": {"workflow": "b.json"}}
    sweep = read_sweep(
        sweep_file(tmp_path, methods=methods, grid={"T.rate": [1, 2]}, subjects="subjects", seeds=[0, 1, 2])
    )
    graph = {"6": Node("6", "LikenessTrainDreamBooth", {"seed": 0})}
    a, b = (list(sweep.rows(method, graph, "w")) for method in sweep.methods)
    assert (len(a), len(b)) == (2 * 2 * 2 * 3, 2 * 2 * 3)
    assert a[0].method == "A" and a[0].subject == "rex" and a[2].settings["6.seed"] == 2
    with pytest.raises(LikenessError, match="no trainer with a seed"):
        sweep.rows(sweep.methods[0], {}, "w")


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"workflow": "w", "seed": [1]}, "line 3: seed is no part of a sweep"),
        ({"grid": {"a.b": [1]}}, "needs a workflow or methods"),
        ({"workflow": "w", "seeds": 3}, "line 3: seeds is 3"),
        ({"workflow": "w", "seeds": [True]}, "seeds is"),
        ({"workflow": "w", "keep_prompts": 2}, "keep_prompts is 2"),
        ({"workflow": "w", "grid": [1]}, "grid is"),
        ({"methods": {"A": {"grid": {}}}}, "line 3: the method A has no workflow"),
    ],
)
def test_a_wrong_sweep_is_told(tmp_path: Path, parts: dict[str, Any], problem: str) -> None:
    with pytest.raises(LikenessError, match=problem):
        read_sweep(sweep_file(tmp_path, **parts))
