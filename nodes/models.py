"""Likeness / model: which text-to-image model learns."""

from __future__ import annotations

from pathlib import Path

from . import host, sockets
from .host import io

TOYBOX = "toybox"
CHECKPOINTS, DIFFUSERS = "checkpoints/", "diffusers/"


class LoadBaseModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessLoadBaseModel",
            display_name="Load Base Model",
            category="Likeness/model",
            description="The model that learns: the built-in Toybox, or a Stable Diffusion 1.x / 2.x / XL "
            "model of yours. Nothing is downloaded, and its weights are never changed.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=[TOYBOX, *_listed()],
                    default=TOYBOX,
                    tooltip="toybox is built in and learns in a minute on a CPU. The others are files in "
                    "models/checkpoints and folders in models/diffusers.",
                ),
                io.String.Input(
                    "path",
                    default="",
                    tooltip="A .safetensors checkpoint or a diffusers folder anywhere on this machine. "
                    "When it is filled in, it counts instead of model.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=["auto", "fp32", "bf16", "fp16"],
                    default="auto",
                    tooltip="Precision of the frozen weights. auto: bf16 on a GPU that has it, else fp32. "
                    "What is trained is always fp32.",
                ),
                host.supported(
                    io.Boolean.Input,
                    "gradient_checkpointing",
                    default=False,
                    advanced=True,
                    tooltip="Much less memory, about a third slower.",
                ),
                host.supported(
                    io.Boolean.Input,
                    "channels_last",
                    default=False,
                    advanced=True,
                    tooltip="Another layout of convolutions in memory: often faster on a GPU, not on a CPU.",
                ),
                host.supported(
                    io.Boolean.Input,
                    "compile",
                    default=False,
                    advanced=True,
                    tooltip="torch.compile: a slow start, then faster steps. Needs a C++ compiler.",
                ),
                host.supported(
                    io.Boolean.Input,
                    "offload",
                    default=False,
                    advanced=True,
                    tooltip="Keep the autoencoder and text encoders in main memory while the UNet works.",
                ),
            ],
            outputs=[
                sockets.Base.Output(
                    "base",
                    display_name="base",
                    tooltip="Which model, and how to open it: for trainers and Generate.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, model: str | None, path: str | None, dtype: str | None) -> bool | str:
        if path and not Path(path).expanduser().exists():
            return f"path: there is no checkpoint or diffusers folder {path}."
        return host.listed(cls, model=model, dtype=dtype)

    @classmethod
    def execute(
        cls,
        model: str,
        path: str,
        dtype: str,
        gradient_checkpointing: bool,
        channels_last: bool,
        compile: bool,
        offload: bool,
    ) -> io.NodeOutput:
        from ..backbones.base import BaseModel
        from ..backbones.complete import check_complete

        source = str(Path(path.strip()).expanduser().resolve()) if path.strip() else source_of(model)
        base = BaseModel(
            source=source,
            dtype=dtype,  # type: ignore[arg-type]  # the combo's options are the Literal's
            device=host.current.device(),
            gradient_checkpointing=gradient_checkpointing,
            channels_last=channels_last,
            compile=compile,
            offload=offload,
        )
        check_complete(base)
        return io.NodeOutput(base)


NODES: list[type[io.ComfyNode]] = [LoadBaseModel]


def _listed() -> list[str]:
    """Checkpoints by name, and folders in models/diffusers that hold a pipeline."""
    files = [CHECKPOINTS + name for name in host.current.model_files("checkpoints")]
    folders = host.current.model_folder("diffusers").glob("*/model_index.json")
    return files + sorted(DIFFUSERS + index.parent.name for index in folders)


def source_of(model: str) -> str:
    """A combo entry as a ``BaseModel.source``. LikenessError when the file has gone."""
    from ..core.errors import LikenessError

    if model == TOYBOX:
        return TOYBOX
    kind, _, name = model.partition("/")
    path = host.current.model_path(kind, name)
    if path is None:
        raise LikenessError(
            f"The model {model} is no longer there", fix="Refresh the page and choose another"
        )
    return str(path)
