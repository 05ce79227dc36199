"""Graph tests import their stub nodes by name; every test has a host of its own."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from likeness.nodes import host

if "likeness_stubs" not in sys.modules:
    spec = importlib.util.spec_from_file_location("likeness_stubs", Path(__file__).parent / "stubs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["likeness_stubs"] = module
    spec.loader.exec_module(module)


@pytest.fixture(autouse=True)
def plain(tmp_path: Path) -> Iterator[host.Plain]:
    before = host.current
    own = host.Plain()
    own.place(output=tmp_path / "output", input=tmp_path / "input")
    host.use(own)
    yield own
    host.use(before)
