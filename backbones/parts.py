"""What a model is made of, and how a part of it is filled from a file, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import LikenessError
from ..core.tensorfile import read_metadata
from . import ldm
from .activations import with_lean_activations
from .schedule import Schedule
from .tokens import ClipTokens

Reader = Callable[[str], Tensor]


@dataclass(frozen=True)
class Parts:
    """A model before it is placed on a device. SDXL has two text encoders, each with its tokenizer."""

    family: str
    unet: nn.Module
    vae: nn.Module
    text_encoders: tuple[nn.Module, ...]
    tokens: tuple[ClipTokens, ...]
    schedule: Schedule
    image_size: int


def fill(
    what: str,
    make: Callable[[], nn.Module],
    shapes: ldm.Shapes,
    name_in_file: Callable[[str], str | None],
    read: Reader,
    dtype: torch.dtype,
) -> nn.Module:
    """Build a module without memory, then read its tensors one at a time, each in its final precision."""
    with torch.device("meta"):
        module = make()
    wanted = {name: tensor.shape for name, tensor in module.state_dict().items()}
    stored = {name: name_in_file(name) for name in wanted}
    missing = [name for name, key in stored.items() if key is None or key not in shapes]
    if missing:
        raise LikenessError(
            f"{what} lacks {len(missing)} of {len(wanted)} tensors, the first is {missing[0]}",
            expected="a complete model",
            fix="Copy or download it again",
        )
    tensors = {}
    for name, key in stored.items():
        assert key is not None
        tensor = read(key)
        if tensor.numel() != wanted[name].numel():
            raise LikenessError(
                f"{what}: {key} has the shape {tuple(tensor.shape)}", expected=str(tuple(wanted[name]))
            )
        tensors[name] = tensor.reshape(wanted[name]).to(dtype)  # 1x1 convolutions become linear layers
    module.load_state_dict(tensors, assign=True)
    _rebuild_buffers(module)
    return module.requires_grad_(False).eval()


def _rebuild_buffers(module: nn.Module) -> None:
    """Buffers that no file stores: CLIP's position numbers are the only ones."""
    for path, buffer in list(module.named_buffers()):
        if buffer.is_meta:
            owner, _, name = path.rpartition(".")
            assert name == "position_ids", path
            numbers = torch.arange(buffer.shape[-1]).expand(1, -1)
            module.get_submodule(owner).register_buffer(name, numbers, persistent=False)


@contextmanager
def opened(path: Path) -> Iterator[tuple[ldm.Shapes, Reader]]:
    """Shapes of all tensors of a file, and a reader of one. Raises LikenessError for a torn file."""
    from safetensors import safe_open

    read_metadata(path)
    with safe_open(path, framework="pt", device="cpu") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        yield shapes, lambda key: file.get_tensor(key).clone()  # not a view of the file, which may go away


def unet_module(config: Mapping[str, Any]) -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_config(dict(config))  # type: ignore[no-any-return,unused-ignore]


def vae_module(config: Mapping[str, Any]) -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_config(dict(config))  # type: ignore[no-any-return,unused-ignore]


def text_module(config: Mapping[str, Any], *, projects: bool = False) -> nn.Module:
    """``projects``: with the layer that makes the pooled state of SDXL's second text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    make = CLIPTextModelWithProjection if projects else CLIPTextModel
    return with_lean_activations(make(CLIPTextConfig(**config, attn_implementation="sdpa")))
