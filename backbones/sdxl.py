"""Stable Diffusion XL (Podell et al. 2023, arXiv:2307.01952): two text encoders, and the picture's size.

    context = [ CLIP-L's states | OpenCLIP bigG's states ]        each as its last layer finds them
    added   = [ bigG's pooled state | sines of height, width, top, left, target height, target width ]

The rest is ``sd.py``'s. A placeholder's row holds both encoders' rows side by side, (N, D_l + D_g), so that
whoever trains one does not know that there are two.
"""
# Shapes: B batch, C latent channels, H W latent height and width, L tokens, D text width, N vectors.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import LikenessError
from .base import LoraSpec, Part, TextStates, WordMapper
from .inference import normal_tensors
from .layered import before
from .lora import HookLora
from .sd import SDBackbone, places, token_embedding_of
from .tokens import ClipTokens, Spliced, rows_by_encoder, scattered, splice


@dataclass(kw_only=True, eq=False)
class SDXLBackbone(SDBackbone):
    """A loaded SDXL; satisfies ``base.Backbone``. ``text_encoder_2`` is the one that gives ``pooled``."""

    text_encoder_2: nn.Module
    tokens_2: ClipTokens  # the same vocabulary, padded with another token

    @property
    def text_encoders(self) -> dict[Part, nn.Module]:
        return {"text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2}

    @normal_tensors
    def encode_prompts(
        self,
        prompts: Sequence[str],
        *,
        embeddings: Mapping[str, Tensor] | None = None,
        mappers: Mapping[str, WordMapper] | None = None,
    ) -> TextStates:
        """As ``sd.py``'s. An empty prompt is encoded like any other, as ComfyUI does; diffusers puts zeros in
        the place of a negative prompt that is not given."""
        self._checked_mappers(mappers or {})
        known = {**self.embeddings, **self._checked(embeddings or {})}
        sizes = {name: len(rows) for name, rows in known.items()}
        halves = {name: rows_by_encoder(rows, self.text_widths) for name, rows in known.items()}
        spliced, spliced_2 = (splice(tokens, prompts, sizes) for tokens in (self.tokens, self.tokens_2))
        l_BLD, _ = self._encoded(self.text_encoder, spliced, _of(halves, "clip_l"))
        g_BLD, out = self._encoded(self.text_encoder_2, spliced_2, _of(halves, "clip_g"))
        context = torch.cat([l_BLD, g_BLD], dim=-1)
        return TextStates(context, out.text_embeds, places(spliced, sizes))

    def _encoded(
        self, encoder: nn.Module, spliced: Spliced, known: Mapping[str, Tensor]
    ) -> tuple[Tensor, Any]:
        """What goes into the encoder's last layer, and what it puts out."""
        inner: Any = getattr(encoder, "text_model", encoder)  # transformers < 5 has one level more
        table, last = token_embedding_of(encoder), inner.encoder.layers[-1]
        with self._visiting(encoder), scattered(table, spliced, known), before(last) as seen:
            out = encoder(input_ids=spliced.ids.to(self.device))
        return seen[-1], out

    def _checked_mappers(self, mappers: Mapping[str, WordMapper]) -> dict[str, WordMapper]:
        if mappers:
            raise LikenessError(
                f"The word {min(mappers)} is another one at every layer and timestep (NeTI), which Stable "
                "Diffusion XL has no place for: its text comes from two encoders, before their last layers",
                expected="a Stable Diffusion 1.x or 2.x model",
                fix="Learn the word by Textual Inversion",
            )
        return {}

    def _added_conditions(self, noisy_BCHW: Tensor, text: TextStates) -> dict[str, Tensor]:
        """The pooled state, and the sizes of a picture that is whole: what ComfyUI and diffusers sample with.

        Differs: the paper (section 2.2) and diffusers' scripts train with each photo's own size and crop.
        """
        assert text.pooled is not None, "text states of this model have a pooled state"
        height, width = (n * self.latent_scale for n in noisy_BCHW.shape[-2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)
        return {
            "text_embeds": text.pooled.to(noisy_BCHW),
            "time_ids": sizes.to(noisy_BCHW.device).expand(len(noisy_BCHW), -1),
        }

    def attach_lora(self, spec: LoraSpec, *, seed: int = 0) -> HookLora:
        """None on the first encoder's last layer, whose output nobody reads."""
        inner: Any = getattr(self.text_encoder, "text_model", self.text_encoder)
        idle = f"text_encoder.encoder.layers.{len(inner.encoder.layers) - 1}."
        modules: dict[str, nn.Module] = {part: self.module(part) for part in self.parts}
        return HookLora(modules, spec, seed=seed, device=self.device, idle=idle)


def _of(halves: Mapping[str, Mapping[str, Tensor]], encoder: str) -> dict[str, Tensor]:
    return {name: rows[encoder] for name, rows in halves.items()}
