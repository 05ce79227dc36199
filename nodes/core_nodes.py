"""The few nodes of ComfyUI's core that workflows of this pack need, for its own runner."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ..core.errors import LikenessError
from ..core.paths import inside
from . import host
from .host import io

# The graph at work as PNG text, set by the runner: ComfyUI's page opens it when such a picture is dropped.
written_into_pictures: dict[str, str] = {}


class LoadImage(io.ComfyNode):
    """A picture from the input folder: IMAGE, and MASK (1 where the picture is transparent)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadImage",
            display_name="Load Image",
            category="image",
            inputs=[io.String.Input("image", default="")],
            outputs=[io.Image.Output(), io.Mask.Output()],
        )

    @classmethod
    def validate_inputs(cls, image: str) -> bool | str:
        path = inside(host.current.input, image, what="The picture of Load Image")
        return path.is_file() or f"there is no picture {path}"

    @classmethod
    def execute(cls, image: str) -> io.NodeOutput:
        from PIL import ImageOps

        path = inside(host.current.input, image, what="The picture of Load Image")
        upright = ImageOps.exif_transpose(_open(path))
        alpha = upright.convert("RGBA").getchannel("A") if upright.has_transparency_data else None
        mask = 1 - _tensor(alpha) if alpha else _tensor(upright.convert("L").resize((64, 64))) * 0
        return io.NodeOutput(_tensor(upright.convert("RGB"))[None], mask[None])


class PreviewImage(io.ComfyNode):
    """Pictures for the eye: kept in the output folder's ``previews``."""

    PREFIX = "previews/preview"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PreviewImage",
            display_name="Preview Image",
            category="image",
            inputs=[io.Image.Input("images")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images: Any) -> io.NodeOutput:
        return io.NodeOutput(ui={"images": save_images(images, cls.PREFIX)})


class SaveImage(io.ComfyNode):
    """Pictures as ``<prefix>_00001_.png`` and so on, counting up."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SaveImage",
            display_name="Save Image",
            category="image",
            inputs=[io.Image.Input("images"), io.String.Input("filename_prefix", default="ComfyUI")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images: Any, filename_prefix: str) -> io.NodeOutput:
        return io.NodeOutput(ui={"images": save_images(images, filename_prefix)})


def save_images(images_BHW3: Any, prefix: str) -> list[dict[str, str]]:
    """Write a batch below the output folder; what ComfyUI's history would say of each file."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    first = inside(host.current.output, prefix, what="The filename prefix")
    first.parent.mkdir(parents=True, exist_ok=True)
    number = len(list(first.parent.glob(f"{first.name}_*_.png")))
    info = PngInfo()
    for key, text in written_into_pictures.items():
        info.add_text(key, text)
    saved = []
    for place, image_HW3 in enumerate(images_BHW3, start=number + 1):
        path = first.with_name(f"{first.name}_{place:05}_.png")
        pixels = (image_HW3.cpu().float() * 255).clamp(0, 255).byte().numpy()  # cut off, as ComfyUI does
        Image.fromarray(pixels).save(path, pnginfo=info)
        folder = path.parent.relative_to(host.current.output.resolve()).as_posix()
        saved.append({"filename": path.name, "subfolder": "" if folder == "." else folder, "type": "output"})
    return saved


def _open(path: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(path)
        picture.load()
        return picture
    except (OSError, UnidentifiedImageError) as error:
        raise LikenessError(f"{path} cannot be read as a picture: {error}") from error


def _tensor(picture: Any) -> Any:
    import numpy as np
    import torch

    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)


class PreviewAny(io.ComfyNode):
    """Any value as text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PreviewAny",
            display_name="Preview as Text",
            category="utils",
            inputs=[io.Custom("*").Input("source")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, source: Any) -> io.NodeOutput:
        return io.NodeOutput(ui={"text": [str(source)]})


def _primitive(name: str, title: str, kind: Any, **options: Any) -> type[io.ComfyNode]:
    class Primitive(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> io.Schema:
            return io.Schema(
                node_id=name,
                display_name=title,
                category="utils/primitive",
                inputs=[kind.Input("value", **options)],
                outputs=[kind.Output()],
            )

        @classmethod
        def execute(cls, value: Any) -> io.NodeOutput:
            return io.NodeOutput(value)

    return Primitive


WHOLE = {"min": -sys.maxsize, "max": sys.maxsize}
CORE_NODES: list[type[io.ComfyNode]] = [
    LoadImage,
    PreviewImage,
    SaveImage,
    PreviewAny,
    _primitive("PrimitiveInt", "Int", io.Int, control_after_generate=True, **WHOLE),
    _primitive("PrimitiveFloat", "Float", io.Float, **WHOLE),
    _primitive("PrimitiveString", "String", io.String),
    _primitive("PrimitiveStringMultiline", "String (Multiline)", io.String, multiline=True),
    _primitive("PrimitiveBoolean", "Boolean", io.Boolean),
]
