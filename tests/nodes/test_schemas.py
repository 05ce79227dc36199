"""Every node's schema: whole, stable, explained, and the same with ComfyUI's own classes."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from likeness.backbones.base import BaseModel
from likeness.headless.comfyui import Install
from likeness.nodes import NODES
from likeness.nodes.learning import PRESET
from likeness.trainers.attractor import Attractor
from likeness.trainers.dreambooth import DreamBoothConfig
from likeness.trainers.generate import Request
from likeness.trainers.method import LoopConfig
from likeness.trainers.monitor import HeldOutMonitor
from likeness.trainers.neti import NeTIConfig
from likeness.trainers.prior import PriorPreservation
from likeness.trainers.textual_inversion import TextualInversionConfig

HERE = Path(__file__).parent
PACK = HERE.parents[1]
GOLDEN = HERE / "schemas.json"

spec = importlib.util.spec_from_file_location("likeness_describe", HERE / "describe.py")
assert spec is not None and spec.loader is not None
describe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(describe)

BY_ID = {cls.GET_SCHEMA().node_id: cls for cls in NODES}


def schemas() -> dict[str, Any]:
    return json.loads(json.dumps({name: describe.described(cls) for name, cls in BY_ID.items()}))


def test_the_schemas_are_the_golden_ones() -> None:
    """A renamed id or socket breaks saved workflows. UPDATE_GOLDEN=1 rewrites the file."""
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(schemas(), indent=1) + "\n", encoding="utf-8")
    assert schemas() == json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_comfyuis_own_classes_make_the_same_schemas(comfyui: Install) -> None:
    command = [comfyui.python, HERE / "describe.py", comfyui.path, PACK]
    child = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=HERE)
    assert child.returncode == 0, child.stderr[-3000:]
    assert json.loads(child.stdout) == schemas()


@pytest.mark.parametrize("name", BY_ID)
def test_everything_has_a_tooltip(name: str) -> None:
    schema = BY_ID[name].GET_SCHEMA()
    assert name.startswith("Likeness") and schema.description and schema.category.startswith("Likeness/")
    silent = [x.id for x in [*schema.inputs, *schema.outputs] if not x.tooltip]
    assert not silent


@pytest.mark.parametrize("name", BY_ID)
def test_every_output_has_a_name(name: str) -> None:
    """Without one the page writes the socket's type."""
    assert all(output.display_name for output in BY_ID[name].GET_SCHEMA().outputs)


@pytest.mark.parametrize("name", BY_ID)
def test_the_node_refuses_what_is_no_option(name: str) -> None:
    """ComfyUI 0.3.64 does not look itself."""
    cls = BY_ID[name]
    combos = {spec.id: spec for spec in cls.GET_SCHEMA().inputs if spec.get_io_type() == "COMBO"}
    for wrong in combos:
        right = {name: spec.options[0] if spec.options else None for name, spec in combos.items()}
        others = dict.fromkeys(inspect.signature(cls.validate_inputs).parameters)
        assert cls.validate_inputs(**others | right) is True
        assert wrong in str(cls.validate_inputs(**others | right | {wrong: "no such option"}))


@pytest.mark.parametrize("name", BY_ID)
def test_execute_takes_exactly_the_inputs(name: str) -> None:
    cls = BY_ID[name]
    ids = {spec.id for spec in cls.GET_SCHEMA().inputs}
    parameters = inspect.signature(cls.execute).parameters.values()
    named = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    assert named <= ids and (open_ended or named == ids)
    optional = {spec.id for spec in cls.GET_SCHEMA().inputs if spec.optional}
    undefaulted = {p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
    assert not undefaulted & optional


@pytest.mark.parametrize("name", BY_ID)
def test_required_inputs_come_first(name: str) -> None:
    """The page lists required inputs first, whatever the order here: saved widget values follow the page."""
    optional = [bool(spec.optional) for spec in BY_ID[name].GET_SCHEMA().inputs]
    assert optional == sorted(optional)


@pytest.mark.parametrize("name", BY_ID)
def test_the_help_page_exists(name: str) -> None:
    page = (PACK / "js" / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert BY_ID[name].GET_SCHEMA().display_name in page
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)
    assert all((PACK / "js" / "docs" / picture).is_file() for picture in pictures)


# --- against the dataclasses that the widgets fill -----------------------------------------------------

FILLS = [
    ("LikenessPriorPreservation", PriorPreservation, {"prompt"}),
    ("LikenessHeldOutMonitor", HeldOutMonitor, set()),
    ("LikenessLoadBaseModel", BaseModel, {"model", "path"}),
    ("LikenessAttractor", Attractor, set()),
    ("LikenessGenerate", Request, {"model", "prompts", "images_per_prompt"}),
]


@pytest.mark.parametrize(("name", "kind", "own"), FILLS, ids=[name for name, _, _ in FILLS])
def test_widgets_have_their_dataclass_defaults(name: str, kind: Any, own: set[str]) -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    for spec in BY_ID[name].GET_SCHEMA().inputs:
        if spec.id not in own:
            assert spec.default == defaults[spec.id], spec.id
    ids = {spec.id for spec in BY_ID[name].GET_SCHEMA().inputs}
    assert set(defaults) - ids <= {"source", "device"}  # chosen by the node itself


TRAINERS = [
    ("LikenessTrainTextualInversion", TextualInversionConfig),
    ("LikenessTrainDreamBooth", DreamBoothConfig),
    ("LikenessTrainNeTI", NeTIConfig),
]
NOT_SETTINGS = {"attractor", "base", "subject", "preset", "monitor", "prior", "seed"}


@pytest.mark.parametrize(("name", "kind"), TRAINERS, ids=[name for name, _ in TRAINERS])
def test_every_trainer_widget_turns_a_setting(name: str, kind: type[LoopConfig]) -> None:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for spec in BY_ID[name].GET_SCHEMA().inputs:
        if spec.id in NOT_SETTINGS:
            continue
        assert spec.id in fields
        if spec.id != "sample_every":  # what an untouched widget says: the preset's value
            assert spec.default in (0, 0.0, "", False, PRESET)


@pytest.mark.parametrize(("name", "kind"), TRAINERS, ids=[name for name, _ in TRAINERS])
@pytest.mark.parametrize("end", ["min", "max"])
def test_the_widgets_ends_are_settings_that_the_trainer_takes(
    name: str, kind: type[LoopConfig], end: str
) -> None:
    for spec in BY_ID[name].GET_SCHEMA().inputs:
        value = getattr(spec, end, None)
        if spec.id not in NOT_SETTINGS and value:
            kind(**{spec.id: value})
