"""NeTI's space-time mapper (Alaluf et al. 2023, arXiv:2305.15391), and XTI's table as its plainest case.

    M(t, l) -> (v_base, v_bypass)

One network answers for every timestep t and cross-attention layer l. XTI (Voynov et al. 2023,
arXiv:2303.09522) has a vector per layer and no notion of time.
"""
# Shapes: S layers, B batch, M = S * B, W random frequencies, H hidden units, A anchors, D text width.

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import LikenessError
from ..core.randomness import generator, normal
from .base import WordRows
from .inference import normal_tensors

NUM_FREQUENCIES = 1024  # the authors' code; with sine and cosine, an encoding of 2048
NUM_TIME_ANCHORS = 10  # the authors' code: t = 0, 100, ..., 900
HIDDEN = 128  # the authors' code
TABLE = "table"  # the one tensor of a LayerTable


class SpaceTimeMapper(nn.Module):
    """NeTI's network for one word. ``num_time_anchors`` times ``num_layers`` anchors make its first layer.

    Everything that decides its output is in ``state_dict``: also the frozen frequencies, and the norm, the
    number of layers and the text width as scalars, so that a file needs nothing beside it.
    """

    target_norm: Tensor

    def __init__(
        self,
        *,
        num_layers: int,
        width: int,
        target_norm: float,
        bypass: bool = True,
        sigma_t: float = 0.03,
        sigma_l: float = 2.0,
        num_frequencies: int = NUM_FREQUENCIES,
        num_time_anchors: int = NUM_TIME_ANCHORS,
        hidden: int = HIDDEN,
        seed: int = 0,
        stream: str = "",
    ) -> None:
        super().__init__()
        self.num_layers, self.width, self.bypass = num_layers, width, bypass
        w_W2 = normal((num_frequencies, 2), seed, "neti frequencies") * torch.tensor([sigma_t, sigma_l])
        self.encoder = nn.Module()
        self.encoder.register_buffer("w", w_W2)
        num_anchors = num_time_anchors * num_layers
        self.input_layer = _linear(2 * num_frequencies, num_anchors)
        self.net = nn.Sequential(
            _linear(num_anchors, hidden), nn.LayerNorm(hidden), nn.LeakyReLU(),
            _linear(hidden, hidden), nn.LayerNorm(hidden), nn.LeakyReLU(),
        )  # fmt: skip
        self.output_layer = _linear(hidden, width * (2 if bypass else 1))
        self.register_buffer("target_norm", torch.tensor(float(target_norm)))
        self.register_buffer("layers", torch.tensor(num_layers))
        self.register_buffer("text_width", torch.tensor(width))
        self.draw(seed, stream, num_time_anchors)

    @torch.no_grad()
    def draw(self, seed: int, stream: str, num_time_anchors: int) -> None:
        """Initial weights: torch's own distribution from our own stream, and the anchors' encodings."""
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear):
                bound = 1 / math.sqrt(layer.in_features)
                for p, part in ((layer.weight, "weight"), (layer.bias, "bias")):
                    p.uniform_(-bound, bound, generator=generator(seed, "neti", stream, name, part))
        times = torch.arange(num_time_anchors) * (1000 // num_time_anchors)
        layer_A = torch.arange(self.num_layers).repeat(num_time_anchors)
        self.input_layer.weight.copy_(self.encode(times.repeat_interleave(self.num_layers), layer_A))

    def encode(self, t_M: Tensor, layer_M: Tensor) -> Tensor:
        """Random Fourier features of (t, l), of length 1, (M, 2 W)."""
        w_W2: Tensor = self.encoder.w  # type: ignore[assignment]
        x_M2 = torch.stack([t_M, layer_M], dim=1).to(w_W2.device, torch.float32)
        angle_MW = x_M2 @ w_W2.T
        return F.normalize(torch.cat([angle_MW.sin(), angle_MW.cos()], dim=1), dim=1)

    def forward(self, t_B: Tensor, keep_SB: Tensor | None = None) -> WordRows:
        """The word at every layer for each timestep. ``keep_SB`` hidden units are kept, the rest zero
        (nested dropout); None keeps all."""
        device = self.output_layer.weight.device
        layer_M = torch.arange(self.num_layers, device=device).repeat_interleave(len(t_B))
        h_MH = self.net(self.input_layer(self.encode(t_B.to(device).repeat(self.num_layers), layer_M)))
        if keep_SB is not None:
            kept_MH = torch.arange(h_MH.shape[1], device=device) < keep_SB.to(device).flatten()[:, None]
            h_MH = h_MH * kept_MH
        # Differs: the paper scales the word's vector to the noun's norm, its code both vectors together;
        # as in the code, so that released mappers mean the same here.
        out = F.normalize(self.output_layer(h_MH), dim=-1) * self.target_norm
        parts = out.view(self.num_layers, len(t_B), -1).chunk(2 if self.bypass else 1, dim=-1)
        return WordRows(parts[0], parts[1] if self.bypass else None)


def _linear(in_features: int, out_features: int) -> nn.Linear:
    """Without initial weights, which would be taken from the host's random state."""
    layer = nn.utils.skip_init(nn.Linear, in_features, out_features)  # type: ignore[no-untyped-call,unused-ignore]
    assert isinstance(layer, nn.Linear)
    return layer


class LayerTable(nn.Module):
    """XTI: one vector per layer, whatever the timestep."""

    def __init__(self, rows_SD: Tensor) -> None:
        super().__init__()
        self.num_layers, self.width = rows_SD.shape
        self.table = nn.Parameter(rows_SD.clone().float())

    def forward(self, t_B: Tensor, keep_SB: Tensor | None = None) -> WordRows:
        return WordRows(self.table[:, None].expand(-1, len(t_B), -1))


Mapper = SpaceTimeMapper | LayerTable


@normal_tensors
def mapper_from_tensors(tensors: Mapping[str, Tensor]) -> Mapper:
    """The mapper whose ``state_dict`` these are. Raises LikenessError when they are not one."""
    try:
        if set(tensors) == {TABLE}:
            return LayerTable(tensors[TABLE]).eval().requires_grad_(False)
        (num_out, hidden), num_anchors = (
            tensors["output_layer.weight"].shape,
            len(tensors["input_layer.bias"]),
        )
        num_layers, width = int(tensors["layers"]), int(tensors["text_width"])
        mapper = SpaceTimeMapper(
            num_layers=num_layers, width=width, bypass=num_out == 2 * width,
            target_norm=float(tensors["target_norm"]), num_frequencies=len(tensors["encoder.w"]),
            num_time_anchors=num_anchors // num_layers, hidden=hidden,
        )  # fmt: skip
        mapper.load_state_dict(dict(tensors))
    except (KeyError, ValueError, IndexError, RuntimeError, ZeroDivisionError) as error:
        raise LikenessError(f"These tensors are no NeTI mapper: {str(error).splitlines()[0]}") from error
    return mapper.eval().requires_grad_(False)
