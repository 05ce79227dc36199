"""This pack's nodes in the real host: all there, as written, light to load, and plain about mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from likeness.benchmarks.comfyui import ComfyServer, Rejected

GOLDEN = json.loads((Path(__file__).parents[1] / "nodes" / "schemas.json").read_text(encoding="utf-8"))
# What loading the pack may not load. ComfyUI itself loads torch, numpy, transformers, safetensors.
HEAVY = {"diffusers", "peft", "open_clip", "sam2", "cv2", "rich"}

Graph = dict[str, dict[str, Any]]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def base_model(path: Path, **changed: Any) -> dict[str, Any]:
    """Load Base Model with its defaults, whatever they are."""
    defaults = {i["id"]: i["default"] for i in GOLDEN["LikenessLoadBaseModel"]["inputs"]}
    return node("LikenessLoadBaseModel", **(defaults | {"path": str(path)} | changed))


def generate(path: Path, **changed: Any) -> Graph:
    inputs = GOLDEN["LikenessGenerate"]["inputs"]
    defaults = {i["id"]: i["default"] for i in inputs if "default" in i}
    few = {"prompts": "a cat\na dog", "images_per_prompt": 1, "steps": 2}
    return {
        "1": base_model(path),
        "2": node("LikenessGenerate", **(defaults | few | {"model": ["1", 0]} | changed)),
        "3": node("PreviewImage", images=["2", 0]),
    }


def cores_own(path: Path, prompt: str = "a cat", steps: int = 2) -> Graph:
    """The graph that every ComfyUI user knows, on a model from this pack."""
    return {
        "1": base_model(path),
        "2": node("LikenessUseInComfyUI", model=["1", 0]),
        "3": node("CLIPTextEncode", clip=["2", 1], text=prompt),
        "4": node("CLIPTextEncode", clip=["2", 1], text=""),
        "5": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "6": node(
            "KSampler",
            model=["2", 0],
            positive=["3", 0],
            negative=["4", 0],
            latent_image=["5", 0],
            seed=1,
            steps=steps,
            cfg=4.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "7": node("VAEDecode", samples=["6", 0], vae=["2", 2]),
        "8": node("PreviewImage", images=["7", 0]),
    }


# --- loading -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def object_info(server: ComfyServer) -> dict[str, Any]:
    return server.object_info()


@pytest.mark.parametrize("name", GOLDEN)
def test_the_node_is_there_as_its_schema_says(object_info: dict[str, Any], name: str) -> None:
    found, schema = object_info[name], GOLDEN[name]
    assert found["python_module"] == "custom_nodes.likeness"
    for key in ("display_name", "category", "description", "output_node"):
        assert found[key] == schema[key]
    assert found["output"] == [o["type"] for o in schema["outputs"]]
    assert found["output_name"] == [o["display_name"] or o["id"] for o in schema["outputs"]]
    assert found["output_tooltips"] == [o["tooltip"] for o in schema["outputs"]]
    order = found["input_order"]
    assert [*order.get("required", []), *order.get("optional", [])] == [i["id"] for i in schema["inputs"]]


@pytest.mark.parametrize("name", GOLDEN)
def test_every_input_is_as_its_schema_says(object_info: dict[str, Any], name: str) -> None:
    inputs = object_info[name]["input"]
    for entry in GOLDEN[name]["inputs"]:
        kind, options = inputs["optional" if entry["optional"] else "required"][entry["id"]]
        assert kind == entry["type"]
        for key in ("default", "min", "max", "step", "tooltip", "multiline"):
            assert options.get(key) == entry.get(key)


def test_no_node_of_ours_is_unwritten(object_info: dict[str, Any]) -> None:
    ours = {name for name, info in object_info.items() if info["python_module"] == "custom_nodes.likeness"}
    assert ours == set(GOLDEN)


def test_the_import_takes_no_time(server: ComfyServer) -> None:
    """ComfyUI's own line says 0.0 s. A busy machine may say 0.1 or 0.2; one heavy import says a second."""
    line = re.search(r"^ +([\d.]+) seconds(.*): .*/likeness$", server.log(), re.MULTILINE)
    assert line and float(line[1]) <= 0.2 and not line[2]


def test_loading_loads_nothing_heavy(modules_at_start: set[str]) -> None:
    assert "torch" in modules_at_start  # the probe does look at the server's process
    assert not modules_at_start & HEAVY


# --- work ----------------------------------------------------------------------------------------------


def test_our_own_road_draws(server: ComfyServer, tiny_pipeline: Path) -> None:
    run = server.run(generate(tiny_pipeline))
    assert run.ok, run.error
    assert len(run.outputs["3"]["images"]) == 2
    assert run.of_type("progress_state")


def test_cores_own_nodes_draw(server: ComfyServer, tiny_pipeline: Path) -> None:
    run = server.run(cores_own(tiny_pipeline))
    assert run.ok, run.error
    assert len(run.outputs["8"]["images"]) == 1


def test_after_an_interrupt_the_next_prompt_runs(server: ComfyServer, tiny_pipeline: Path) -> None:
    with server.listen() as listener:
        from likeness.benchmarks.comfyui import Run

        run = Run(server.queue(generate(tiny_pipeline, steps=1000, seed=5), listener.client_id))
        asked = False
        for event in listener.follow(run):
            if event["type"] == "progress_state" and not asked:
                server.interrupt()
                asked = True
    assert asked and run.interrupted
    assert server.run(generate(tiny_pipeline, seed=6)).ok


# --- mistakes ------------------------------------------------------------------------------------------

REFUSED = [
    ("1", "path", {"path": "/no/such/model"}),
    ("1", "dtype", {"dtype": "fp64"}),
    ("2", "steps", {"steps": 0}),
    ("2", "guidance", {"guidance": 1e9}),
    ("2", "seed", {"seed": "many"}),
    ("2", "prompts", {"prompts": "  "}),
]


@pytest.mark.parametrize(("where", "what", "wrong"), REFUSED, ids=[what for _, what, _ in REFUSED])
def test_a_bad_value_is_refused_on_its_node(
    server: ComfyServer, tiny_pipeline: Path, where: str, what: str, wrong: dict[str, Any]
) -> None:
    graph = generate(tiny_pipeline)
    graph[where]["inputs"] |= wrong
    with pytest.raises(Rejected) as refused:
        server.queue(graph)
    assert set(refused.value.node_errors) == {where}
    assert what in json.dumps(refused.value.node_errors[where]["errors"])


def test_a_wrong_link_is_refused_on_its_node(server: ComfyServer, tiny_pipeline: Path) -> None:
    graph = generate(tiny_pipeline, model=["3", 0]) | {
        "3": node("EmptyImage", width=16, height=16, batch_size=1)
    }
    graph["4"] = node("PreviewImage", images=["2", 0])
    with pytest.raises(Rejected) as refused:
        server.queue(graph)
    assert "2" in refused.value.node_errors


@pytest.mark.parametrize("road", [generate, cores_own])
def test_a_broken_model_is_an_error_in_plain_words(server: ComfyServer, tmp_path: Path, road: Any) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{")
    run = server.run(road(tmp_path))
    assert not run.ok
    assert run.error["node_id"] == "1"  # the loader says it, before anyone computes
    assert str(tmp_path) in run.error["exception_message"]
    assert run.error["exception_type"].endswith("LikenessError")
