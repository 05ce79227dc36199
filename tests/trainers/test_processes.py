"""Two processes with gloo against one: the same training up to rounding, and exact within itself."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from likeness.core.errors import LikenessError
from likeness.core.hashing import hash_tensors
from likeness.trainers.accumulate import require_divisible, share
from likeness.trainers.method import LoopConfig

from . import processes_child as child

CHILD = Path(child.__file__)
# Of losses and gradients, relative: fp32's rounding in another order of adding. Of parameters the gradients'
# moments are compared: Adam divides each by its own size, so that one of nothing but rounding moves as well.
TOLERANCE = 1e-5


def start(*arguments: str, count: int = 2) -> list[subprocess.Popen[str]]:
    """As a launcher does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    command = [sys.executable, str(CHILD), *arguments]
    environments = [{**os.environ, **place, "RANK": str(n)} for n in range(count)]
    return [subprocess.Popen(command, env=e, stderr=subprocess.PIPE, text=True) for e in environments]


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    ended = [(one.communicate(timeout=900)[1], one.returncode) for one in processes]
    return [(code, told) for told, code in ended]


@pytest.fixture(scope="module")
def world(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> child.World:
    return child.World(tiny_pipeline, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def concept(world: child.World) -> Path:
    """What both align: the last bits of another one would lead elsewhere."""
    path: Path = child.finished(world.events("dreambooth")).concept.path
    return path


@pytest.fixture(scope="module")
def together(tiny_pipeline: Path, concept: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("together")
    ended = ends(start(str(tiny_pipeline), str(folder), "all", str(concept)))
    assert [code for code, _ in ended] == [0, 0], ended
    for _, told in ended:  # a thread of the group that is left may abort its process
        assert "Threads of the group: []" in told
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found | {"others": ended[1][1]}


@pytest.fixture(scope="module")
def alone(world: child.World, concept: Path) -> dict[str, str]:
    return child.learn_all(world, concept)


def lines(folder: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / "history.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", [*child.CASES, *child.ALIGN])
def test_two_processes_train_as_one(together: dict[str, Any], alone: dict[str, str], name: str) -> None:
    two, one = lines(together["runs"][name]), lines(alone[name])
    assert [row["terms"].keys() for row in two] == [row["terms"].keys() for row in one]
    for key in ("loss", "grad_norm"):
        numbers = [[row[key] for row in rows] for rows in (two, one)]
        assert numbers[0] == pytest.approx(numbers[1], rel=TOLERANCE, abs=TOLERANCE)
    mine, theirs = child.state_of(together["runs"][name]), child.state_of(alone[name])
    assert mine.keys() == theirs.keys()
    moments = [key for key in mine if key.startswith("adamw.exp_avg.")]
    scale = max(float(theirs[key].abs().max()) for key in moments)
    furthest = max(float((mine[key] - theirs[key]).abs().max()) for key in moments)
    assert furthest < 1e-4 * scale


def test_it_was_two(together: dict[str, Any]) -> None:
    assert together["size"] == 2
    run = json.loads((Path(together["runs"]["dreambooth"]) / "run.json").read_text())
    assert run["provenance"]["processes"] == "2"


@pytest.mark.parametrize("name", ["dreambooth", "neti, two forwards"])
def test_interrupts_change_no_bit(together: dict[str, Any], name: str) -> None:
    assert together["resumed"][name] == hash_tensors(child.state_of(together["runs"][name]))


def test_what_cannot_be_shared_is_said_and_the_next_training_works(together: dict[str, Any]) -> None:
    assert "2 processes cannot share a step of 1 x 3 rows" in together["uneven"]
    assert "attractor" in together["coupled"] and "accumulation" in together["coupled"]
    assert "Process 1" in together["broken"] and "the other one broke" in together["broken"]
    assert "Traceback" in together["others"]  # whose message it was
    assert len(lines(together["after"])) == 3


def test_a_lost_process_ends_the_training_with_its_state_saved(tiny_pipeline: Path, tmp_path: Path) -> None:
    ended = ends(start(str(tiny_pipeline), str(tmp_path), "lost"))
    assert [code for code, _ in ended] == [0, 9], ended
    assert "Threads of the group: []" in ended[0][1]
    assert "Another process" in json.loads((tmp_path / "found.json").read_text())["lost"]


class Counting:
    """A method whose batches are their own numbers."""

    def batch(self, index: int) -> list[int]:
        return [10 * index + row for row in range(4)]

    def part(self, batch: list[int], rows: slice) -> list[int]:
        return batch[rows]


@pytest.mark.parametrize(("accumulation", "size"), [(1, 2), (2, 2), (3, 2), (4, 2), (1, 4), (3, 4)])
def test_the_shares_of_all_are_the_whole_step(accumulation: int, size: int) -> None:
    config = LoopConfig(batch_size=4, accumulation=accumulation)
    require_divisible(config, size)
    shares = [list(share(Counting(), config, 5, rank=rank, size=size)) for rank in range(size)]  # type: ignore[arg-type]
    whole = [row for batch in share(Counting(), config, 5, rank=0, size=1) for row in batch]  # type: ignore[arg-type]
    assert sorted(row for own in shares for batch in own for row in batch) == sorted(whole)
    assert len({tuple(map(len, own)) for own in shares}) == 1  # every process as much as every other


def test_unequal_shares_are_refused() -> None:
    with pytest.raises(LikenessError, match="3 processes"):
        require_divisible(LoopConfig(batch_size=4, accumulation=2), 3)
