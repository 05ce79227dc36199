"""Low-rank adapters that sit on a model as forward hooks (Hu et al. 2021, arXiv:2106.09685).

    y = W x + strength * (alpha / rank) * B A x

Hooks and not wrapped modules: the model keeps its module tree and parameter names while adapters are on it,
any number of them add up, and taking one off leaves no trace.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import LikenessError
from ..core.randomness import normal
from .base import LoraSpec
from .inference import normal_tensors

# diffusers examples/dreambooth/train_dreambooth_lora.py: the default targets of UNet and text encoder.
_ATTENTION = re.compile(r".*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)")
_TEXT = re.compile(r".*\.self_attn\.(q_proj|k_proj|v_proj|out_proj)")
# Every other weighted layer that works on the picture's plane.
_CONV = re.compile(
    r".*\.(resnets\.\d+\.(conv1|conv2|conv_shortcut)|(down|up)samplers\.0\.conv|attentions\.\d+\.proj_(in|out))"
)


class Adapter:
    """One layer's A and B, called as a forward hook of that layer."""

    def __init__(self, lora_A: Tensor, lora_B: Tensor, scale: float = 1.0) -> None:
        self.lora_A = lora_A
        self.lora_B = lora_B
        self.scale = scale

    @classmethod
    def fresh(cls, layer: nn.Module, rank: int, seed: int, name: str, device: torch.device) -> Adapter:
        """Trainable, and without effect yet: B is zero."""
        weight = layer.weight
        assert isinstance(weight, Tensor)
        out_width, in_width, *kernel = weight.shape
        # peft's "gaussian" init, of diffusers' script: std 1 / rank.
        a = normal((rank, in_width, *kernel), seed, "lora", name) / rank
        b = torch.zeros(out_width, rank, *[1] * len(kernel))
        return cls(nn.Parameter(a.to(device)), nn.Parameter(b.to(device)))

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        if self.scale == 0:
            return out
        x = args[0]
        a, b = self.lora_A.to(x), self.lora_B.to(x)  # fp32 kept, the layer's precision used
        if isinstance(layer, nn.Conv2d):
            h = F.conv2d(x, a, None, layer.stride, layer.padding, layer.dilation)  # type: ignore[arg-type,unused-ignore]
            return out + self.scale * F.conv2d(h, b)
        h = F.linear(x, a).flatten(0, -2)
        return torch.addmm(out.flatten(0, -2), h, b.t(), alpha=self.scale).view(out.shape)


class HookLora:
    """Adapters on a backbone's modules; satisfies ``base.Lora``.

    ``modules`` are the parts by name ("unet", "text_encoder", "text_encoder_2"). Text encoder names leave out
    the ``text_model.`` that transformers had before version 5. Layers whose names begin with ``idle`` get
    none: nothing reads what they put out.
    """

    @normal_tensors
    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        spec: LoraSpec,
        *,
        seed: int,
        device: torch.device,
        idle: str | None = None,
    ) -> None:
        if spec.rank < 1:
            raise LikenessError(f"A LoRA of rank {spec.rank} was asked for", expected="a rank of 1 or more")
        self.spec = spec
        self._adapters: dict[str, Adapter] = {}
        self._handles = []
        for name, layer in target_layers(modules, spec):
            if idle and name.startswith(idle):
                continue
            adapter = Adapter.fresh(layer, spec.rank, seed, name, device)
            self._adapters[name] = adapter
            self._handles.append(layer.register_forward_hook(adapter))
        self.set_strength(1.0)

    def parameters(self) -> dict[str, nn.Parameter]:
        """``"<part>.<module>.lora_A"`` and ``".lora_B"`` in the order of the model's modules."""
        return {
            f"{name}.{side}": getattr(adapter, side)
            for name, adapter in self._adapters.items()
            for side in ("lora_A", "lora_B")
        }

    @normal_tensors
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy values in. Raises LikenessError unless names and shapes are exactly these adapters'."""
        ours = self.parameters()
        wrong = [n for n in {*ours, *tensors} if n not in ours or n not in tensors]
        wrong = wrong or [n for n in ours if ours[n].shape != tensors[n].shape]
        if wrong:
            raise LikenessError(
                f"The LoRA was made for another model or other settings: {min(wrong)} does not fit",
                expected=f"{len(ours)} tensors of rank {self.spec.rank}",
            )
        with torch.no_grad():
            for name, parameter in ours.items():
                parameter.copy_(tensors[name])

    def set_strength(self, strength: float) -> None:
        for adapter in self._adapters.values():
            adapter.scale = strength * self.spec.alpha / self.spec.rank

    def detach(self) -> None:
        """Take the adapters off. The parameters live on for whoever holds them."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def target_layers(modules: Mapping[str, nn.Module], spec: LoraSpec) -> Iterable[tuple[str, nn.Module]]:
    """The layers that ``spec`` adapts, as ("unet.<module>", layer)."""
    unet, text = [_ATTENTION, *([_CONV] if spec.conv else [])], [_TEXT] if spec.text_encoder else []
    for part, module in modules.items():
        wanted = unet if part == "unet" else text
        for name, layer in module.named_modules():
            if any(pattern.fullmatch(name) for pattern in wanted):
                yield f"{part}.{name.removeprefix('text_model.')}", layer


def without_hooks(module: nn.Module) -> nn.Module:
    """``module`` with every forward hook in it removed: what a copy of it starts with."""
    for layer in module.modules():
        hooks: dict[int, Any] = layer._forward_hooks
        hooks.clear()
    return module
