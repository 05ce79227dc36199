"""Schemas as plain data, read in the same way from ComfyUI's classes and from the standalone ones.

Run as a program by test_schemas.py, in a process of its own:

    python describe.py COMFYUI_FOLDER PACK_FOLDER     prints the schemas as ComfyUI's own classes make them
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

MODEL_FILES = (".safetensors", ".sft", ".ckpt")


def described(cls: Any) -> dict[str, Any]:
    """All of a schema that a page or a workflow file can see."""
    schema = cls.GET_SCHEMA()
    inputs = [{"id": i.id, "type": str(i.get_io_type()), **i.as_dict()} for i in schema.inputs]
    for entry in inputs:
        entry.pop("advanced", None)  # newer ComfyUI only
        if "options" in entry:  # the models that happen to lie on this machine are no part of a schema
            entry["options"] = [one for one in entry["options"] if not str(one).endswith(MODEL_FILES)]
    return {
        "display_name": schema.display_name,
        "category": schema.category,
        "description": schema.description,
        "output_node": schema.is_output_node,
        "inputs": inputs,
        "outputs": [
            {"id": o.id, "type": str(o.io_type), "display_name": o.display_name, "tooltip": o.tooltip}
            for o in schema.outputs or []
        ],
    }


def load_as_comfyui(pack: Path) -> Any:
    """The pack as ``nodes.load_custom_node`` loads it: under a name that is no package name."""
    name = str(pack).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(
        name, pack / "__init__.py", submodule_search_locations=[str(pack)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def main(comfyui: str, pack: str) -> None:
    sys.path.insert(0, comfyui)
    import comfy_api.latest  # the server has imported it before packs are loaded

    async def nodes() -> Any:
        extension = await load_as_comfyui(Path(pack)).comfy_entrypoint()
        assert isinstance(extension, comfy_api.latest.ComfyExtension)
        return await extension.get_node_list()

    found = asyncio.run(nodes())
    assert all(issubclass(cls, comfy_api.latest.io.ComfyNode) for cls in found)
    sys.stdout.write(json.dumps({cls.GET_SCHEMA().node_id: described(cls) for cls in found}))


if __name__ == "__main__":
    main(*sys.argv[1:])
