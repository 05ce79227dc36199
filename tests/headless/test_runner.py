"""A graph is checked whole before anything runs, and then runs in the right order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from likeness.core.errors import Interrupted, LikenessError
from likeness.headless import runner
from likeness.headless.graph import Graph, Link, Node, to_api
from likeness.nodes import host
from likeness_stubs import CLASSES
from PIL import Image


def source(**inputs: Any) -> dict[str, Any]:
    return {"value": 1, "seed": 0, "scale": 1.0, "mode": "one", "on": True, "text": "hi", **inputs}


def graph(**nodes: tuple[str, dict[str, Any]]) -> Graph:
    return {key[1:]: Node(key[1:], class_type, inputs) for key, (class_type, inputs) in nodes.items()}


def chain(**inputs: Any) -> Graph:
    return graph(n1=("Source", source(**inputs)), n2=("Show", {"number": Link("1", 0)}))


def test_results_flow_along_links() -> None:
    g = graph(
        n9=("Show", {"number": Link("3", 0)}),
        n3=("Add", {"left": Link("1", 0), "right": Link("1", 0)}),
        n1=("Source", source(value=4, scale=0.5)),
    )
    seen: list[tuple[str, str]] = []
    results = runner.run(g, CLASSES, lambda node, what: seen.append((node.id, what)))
    assert results["9"].args == (4.0,)
    assert [key for key, what in seen if what == "start"] == ["1", "3", "9"]


def test_independent_nodes_run_as_the_file_has_them() -> None:
    """So that a person who reads the graph from the top sees it run from the top."""
    g = graph(n5=("Source", source()), n4=("Source", source()), n3=("Show", {"number": Link("4", 0)}))
    g |= graph(n2=("Show", {"number": Link("5", 0)}))
    assert runner.check(g, CLASSES) == ["5", "4", "3", "2"]


def test_only_output_nodes_and_what_they_need_run() -> None:
    g = chain() | graph(n5=("Source", source()), n6=("Add", {"left": Link("5", 0)}))
    assert set(runner.run(g, CLASSES)) == {"1", "2"}


def test_nodes_run_under_inference_mode_as_in_comfyui() -> None:
    seen = []
    runner.run(chain(), CLASSES, lambda node, what: seen.append(torch.is_inference_mode_enabled()))
    assert all(seen) and not torch.is_inference_mode_enabled()


BAD = {
    "an unknown class": (graph(n1=("Nope", {})), "node 1 (Nope) is not a node"),
    "a core node that is not run here": (graph(n1=("KSampler", {})), "ComfyUI"),
    "no output node": (graph(n1=("Source", source())), "no output node"),
    "a missing input": (graph(n2=("Show", {})), "the input number is missing"),
    "an unknown input": (chain(colour=1), "node 1 (Source) has no input colour"),
    "a text for a number": (chain(value="many"), "value is 'many'. Expected: one whole number"),
    "half a number": (chain(value=1.5), "value is 1.5"),
    "a truth for a number": (chain(value=True), "value is True"),
    "a number that is none": (chain(scale=float("nan")), "scale is nan"),
    "a list for a number": (chain(value=[1, 2, 3]), "value is [1, 2, 3]"),
    "a list for a text": (chain(text=["a"]), "text is ['a']"),
    "a list for a combo": (chain(mode=["one"]), "mode is ['one']"),
    "too much": (chain(value=11), "value is 11. Expected: from 0 to 10"),
    "too little": (chain(scale=-0.1), "scale is -0.1. Expected: from 0.0 to 2.0"),
    "no option": (chain(mode="three"), "mode is 'three'. Expected: one of one, two"),
    "neither true nor false": (chain(on="maybe"), "on is 'maybe'"),
    "a value for a socket": (graph(n2=("Show", {"number": 3})), "Expected: a link that brings NUMBER"),
    "a link to nowhere": (
        graph(n2=("Show", {"number": Link("7", 0)})),
        "linked to node 7, which is not there",
    ),
    "a link to an output that is not there": (
        graph(n1=("Source", source()), n2=("Show", {"number": Link("1", 5)})),
        "linked to output 5 of node 1 (Source), which has 2",
    ),
    "a link of another type": (
        graph(n1=("Source", source()), n2=("Show", {"number": Link("1", 1)})),
        "gives STRING. Expected: NUMBER",
    ),
    "a cycle": (
        graph(n1=("Add", {"left": Link("2", 0)}), n2=("Show", {"number": Link("1", 0)})),
        "needs its own output: ",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_graph_names_node_and_input_and_runs_nothing(what: str) -> None:
    bad, words = BAD[what]
    ran: list[str] = []
    with pytest.raises(LikenessError) as error:
        runner.run(bad, CLASSES, lambda node, _: ran.append(node.id))
    assert words in str(error.value) and not ran


def test_values_are_converted_as_comfyui_does() -> None:
    g = chain(value="3", scale="0.5", on="false", text=7)
    runner.check(g, CLASSES)
    assert (g["1"].inputs["value"], g["1"].inputs["scale"]) == (3, 0.5)
    assert g["1"].inputs["on"] is False and g["1"].inputs["text"] == "7"


def test_a_long_chain_is_no_problem() -> None:
    g = graph(n0=("Source", source()))
    for i in range(1, 3000):
        g[str(i)] = Node(str(i), "Add", {"left": Link(str(i - 1), 0)})
    g["end"] = Node("end", "Show", {"number": Link("2999", 0)})
    assert runner.run(g, CLASSES)["end"].args == (1.0,)


def test_a_stop_comes_between_nodes(plain: host.Plain) -> None:
    with pytest.raises(Interrupted):
        runner.run(chain(), CLASSES, lambda node, what: plain.stop.set())


# --- --set ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["1", "Source", "source", "My Numbers", "mynumbers"])
def test_set_finds_a_node_by_id_title_or_class(name: str) -> None:
    g = chain()
    g["1"].title = "My Numbers"
    runner.set_input(g, CLASSES, f"{name}.value=7")
    runner.check(g, CLASSES)
    assert g["1"].inputs["value"] == 7


def test_set_takes_all_after_the_first_equals_sign() -> None:
    g = chain()
    runner.set_input(g, CLASSES, "1.text=a=b.c=d")
    assert g["1"].inputs["text"] == "a=b.c=d"


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("value=7", "is not understood"),
        ("1.value", "is not understood"),
        ("Nope.value=7", "no nodes are called 'Nope'"),
        ("1.colour=7", "has no input colour"),
    ],
)
def test_a_bad_set_says_what_there_is(assignment: str, words: str) -> None:
    with pytest.raises(LikenessError, match=words):
        runner.set_input(chain(), CLASSES, assignment)


def test_set_of_a_name_that_two_nodes_have() -> None:
    with pytest.raises(LikenessError, match=r"2 nodes are called 'Source'.*1 \(Source\), 3 \(Source\)"):
        runner.set_input(chain() | graph(n3=("Source", source())), CLASSES, "Source.value=1")


# --- core's nodes --------------------------------------------------------------------------------------


def test_pictures_are_loaded_and_saved_as_core_does(plain: host.Plain) -> None:
    plain.input.mkdir(parents=True)
    Image.new("RGBA", (6, 4), (255, 0, 0, 0)).save(plain.input / "red.png")
    g = graph(
        n1=("LoadImage", {"image": "red.png"}),
        n2=("SaveImage", {"images": Link("1", 0), "filename_prefix": "sub/red"}),
        n3=("PreviewImage", {"images": Link("1", 0)}),
    )
    results = runner.run(g, CLASSES)
    image, mask = results["1"].args
    assert image.shape == (1, 4, 6, 3) and mask.shape == (1, 4, 6) and bool((mask == 1).all())
    ui = {"filename": "red_00001_.png", "subfolder": "sub", "type": "output"}
    assert results["2"].ui == {"images": [ui]}
    saved = Image.open(plain.output / "sub" / "red_00001_.png")
    assert saved.size == (6, 4) and saved.getpixel((0, 0)) == (255, 0, 0)
    assert json.loads(saved.text["prompt"]) == to_api(g)  # a picture brings its graph along
    assert runner.run(g, CLASSES)["2"].ui == {"images": [ui | {"filename": "red_00002_.png"}]}


@pytest.mark.parametrize("name", ["../x.png", "/etc/passwd", "a/../../x.png", "nul", "none.png", ""])
def test_a_picture_outside_the_input_folder_is_refused(name: str, plain: host.Plain, tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "x.png")
    g = graph(n1=("LoadImage", {"image": name}), n2=("PreviewImage", {"images": Link("1", 0)}))
    with pytest.raises(LikenessError):
        runner.run(g, CLASSES)


@pytest.mark.parametrize("prefix", ["../x", "/tmp/x", "a/../../x"])
def test_a_prefix_outside_the_output_folder_is_refused(prefix: str, plain: host.Plain) -> None:
    plain.input.mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(plain.input / "x.png")
    g = graph(
        n1=("LoadImage", {"image": "x.png"}),
        n2=("SaveImage", {"images": Link("1", 0), "filename_prefix": prefix}),
    )
    with pytest.raises(LikenessError, match="filename prefix"):
        runner.run(g, CLASSES)
