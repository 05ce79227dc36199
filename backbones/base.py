"""The one interface that a trainer sees: a text-to-image model with its trainable surfaces.

Noise prediction, v-prediction and flow matching differ inside a backbone, never in a trainer.
"""
# Shapes: B batch, C latent channels, H W latent height and width, L tokens, D text width, N vectors,
# S cross-attention layers in the order in which they run.

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

Prediction = Literal["epsilon", "v_prediction", "flow"]
Part = Literal["unet", "text_encoder", "text_encoder_2"]


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """Which model to open and how: the small handle that a graph passes around.

    ``source`` is ``"toybox"``, a single-file checkpoint, or a diffusers folder. Only ``source`` (by its
    content), ``revision`` settings that change numbers (``dtype``) enter a run's key.
    """

    source: str = "toybox"
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: str = "auto"
    gradient_checkpointing: bool = False
    channels_last: bool = False
    compile: bool = False
    offload: bool = False  # keep VAE and text encoder on the CPU while the UNet works


@dataclass(frozen=True)
class Latents:
    """The VAE's posterior, already scaled to the UNet's range: mean and std, each (B, C, H, W), fp32."""

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """``mean + std * noise``: drawn anew at every step, since caching one draw changes the loss."""
        return self.mean + self.std * noise


@dataclass(frozen=True)
class WordRows:
    """What a mapped word is at one timestep per row: its token's embedding at every layer (S, B, D), and
    what is added to its encoded state for the values alone (NeTI's textual bypass), (S, B, D) or None."""

    rows_SBD: Tensor
    bypass_SBD: Tensor | None = None


class WordMapper(Protocol):
    """A learned word that depends on timestep and cross-attention layer (NeTI, XTI)."""

    @property
    def num_layers(self) -> int: ...
    @property
    def width(self) -> int: ...
    def __call__(self, t_B: Tensor) -> WordRows: ...


@dataclass(frozen=True)
class LayerStates:
    """What every cross-attention reads as keys and as values, each (S, B, L, D)."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class TextStates:
    """What cross-attention reads: context (B, L, D), and SDXL's pooled state (B, P) where there is one.

    ``words`` says where the learned words stand: (K, 2) of row and position each. With a mapped word in a
    prompt there is no context without a timestep: ``at(t_B)`` gives it, and ``context`` is NaN.
    """

    context: Tensor
    pooled: Tensor | None = None
    words: Mapping[str, Tensor] = field(default_factory=dict)
    at: Callable[[Tensor], LayerStates] | None = None

    def joined(self, other: TextStates) -> TextStates:
        """The rows of both, without ``words``. A single row of ``self`` stands for many."""
        mine = _repeated(self.context, len(other.context))
        context = torch.cat([mine, other.context])
        if self.at is None and other.at is None:
            return TextStates(context, _pooled(self, other))

        def at(t_B: Tensor) -> LayerStates:
            first, second = _at(self, mine, t_B[: len(mine)]), _at(other, other.context, t_B[len(mine) :])
            return LayerStates(*(_beside(a, b) for a, b in zip(first, second, strict=True)))

        return TextStates(context, at=at)


def _repeated(rows_B: Tensor, num: int) -> Tensor:
    return rows_B.expand(num, *rows_B.shape[1:]) if len(rows_B) == 1 else rows_B


def _pooled(first: TextStates, second: TextStates) -> Tensor | None:
    if first.pooled is None or second.pooled is None:
        return None
    return torch.cat([_repeated(first.pooled, len(second.pooled)), second.pooled])


def _at(text: TextStates, context_BLD: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor]:
    if text.at is None:
        return context_BLD[None], context_BLD[None]
    states = text.at(t_B[: len(text.context)])
    shape = (-1, len(context_BLD), -1, -1)
    return states.keys.expand(shape), states.values.expand(shape)


def _beside(a_SBLD: Tensor, b_SBLD: Tensor) -> Tensor:
    layers = max(len(a_SBLD), len(b_SBLD))
    return torch.cat([x.expand(layers, -1, -1, -1) for x in (a_SBLD, b_SBLD)], dim=1)


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """Where low-rank adapters go. Scale is ``alpha / rank``; A is gaussian, B zero."""

    rank: int = 4
    alpha: float = 4.0
    conv: bool = False  # also the UNet's convolutions (ResNet blocks and samplers)
    text_encoder: bool = False  # every one that the model has


class Lora(Protocol):
    """Adapters that sit on a backbone until ``detach``. Names are diffusers module paths.

    ``parameters()`` maps ``"unet.<module>.lora_A"`` / ``"....lora_B"`` (and ``text_encoder.``,
    ``text_encoder_2.``) to the live parameters, in a fixed order.
    """

    spec: LoraSpec

    def parameters(self) -> dict[str, nn.Parameter]: ...
    def load(self, tensors: Mapping[str, Tensor]) -> None: ...
    def set_strength(self, strength: float) -> None: ...
    def detach(self) -> None: ...


class Backbone(Protocol):
    """A loaded model. Methods never change the base weights."""

    base: BaseModel
    family: str  # "toybox", "sd1", "sd2", "sdxl"
    content_hash: str  # of the weights as stored, not of the path
    prediction: Prediction
    num_train_timesteps: int
    image_size: int  # native edge in pixels
    latent_scale: int  # pixels per latent cell, 8
    size_step: int  # in pixels: edges are multiples of it
    latent_channels: int
    embeddings: Mapping[str, Tensor]  # learned placeholders that prompts may name, (N, D) each
    mappers: Mapping[str, WordMapper]  # learned words that depend on timestep and layer, likewise
    num_cross_attentions: int  # S

    @property
    def device(self) -> Any: ...

    @property
    def parts(self) -> Sequence[Part]:
        """What ``module`` knows."""
        ...

    @property
    def text_widths(self) -> Mapping[str, int]:
        """Of each text encoder's token rows, by ComfyUI's name: ``clip_l``, and in SDXL ``clip_g``."""
        ...

    # --- text -------------------------------------------------------------------------------------
    def token_ids(self, text: str) -> list[int]:
        """BPE ids of ``text`` without start and end."""
        ...

    def token_embedding(self, text: str) -> Tensor:
        """The vocabulary rows of ``text``'s tokens, (n, D), a detached fp32 copy. With two text encoders a
        row is that of both, side by side."""
        ...

    def encode_prompts(
        self,
        prompts: Sequence[str],
        *,
        embeddings: Mapping[str, Tensor] | None = None,
        mappers: Mapping[str, WordMapper] | None = None,
    ) -> TextStates:
        """Context of each prompt. ``embeddings`` adds to or replaces ``self.embeddings``, ``mappers``
        ``self.mappers``; gradients flow into their tensors. A placeholder of N vectors takes N positions, a
        mapped word one. Warns when it cuts a long prompt. LikenessError for a mapped word where the model
        has no place for one."""
        ...

    # --- diffusion --------------------------------------------------------------------------------
    def encode_images(self, images_B3HW: Tensor) -> Latents:
        """Images in [-1, 1] to scaled latents."""
        ...

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Scaled latents to images in [0, 1], (B, 3, H, W), fp32."""
        ...

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor: ...
    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor: ...
    def snr(self, t_B: Tensor) -> Tensor: ...
    def predict(self, noisy_BCHW: Tensor, t_B: Tensor, text: TextStates) -> Tensor:
        """The network's raw output, fp32, comparable with ``target``."""
        ...

    def timesteps(self, steps: int) -> list[int]:
        """The descending timesteps that ``denoise`` walks."""
        ...

    def clean(self, noisy_BCHW: Tensor, out_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """The clean latents that ``predict``'s output estimates, with its gradients."""
        ...

    def transition(
        self, noisy_BCHW: Tensor, out_BCHW: Tensor, t_B: Tensor, steps: int, *, eta: float
    ) -> tuple[Tensor, Tensor]:
        """One denoising step as the gaussian that it draws from: mean (B, C, H, W) and std (B,), fp32.

        ``out_BCHW`` is what ``predict`` said (guided or not) and carries gradients."""
        ...

    def denoise(
        self,
        text: TextStates,
        negative: TextStates,
        *,
        seeds: Sequence[int],
        steps: int,
        guidance: float,
        eta: float = 0.0,
        size: tuple[int, int] | None = None,
    ) -> Iterator[Tensor]:
        """DDIM, one latent batch per step (the last one is the result), noise drawn on the CPU from each
        row's own seed, so that a row does not depend on its batch."""
        ...

    def sample(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        steps: int = 25,
        guidance: float = 5.0,
        negative: str = "",
        eta: float = 0.0,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Pictures in [0, 1], (B, 3, H, W), on the CPU: encode, denoise, decode, without gradients."""
        ...

    # --- trainable surfaces -----------------------------------------------------------------------
    def attach_lora(self, spec: LoraSpec, *, seed: int = 0) -> Lora:
        """Put fresh adapters on the model. Several may be attached at once; their effects add."""
        ...

    def with_embeddings(self, embeddings: Mapping[str, Tensor]) -> Backbone:
        """The same weights, knowing more placeholders. A view: nothing is copied."""
        ...

    def with_mappers(self, mappers: Mapping[str, WordMapper]) -> Backbone:
        """The same weights, knowing more mapped words. A view: nothing is copied."""
        ...

    def layered(self) -> AbstractContextManager[None]:
        """Hold this open around ``predict`` and the backward pass where a mapped word trains: with gradient
        checkpointing the layers run once more in backward, and must find their own states then too."""
        ...

    def private_copy(self, *parts: Part) -> Backbone:
        """A backbone whose named parts are copies in fp32, free to be trained whole."""
        ...

    def module(self, part: Part) -> nn.Module:
        """The torch module of a part, with diffusers' or transformers' parameter names."""
        ...

    def patched(
        self, deltas: Mapping[str, Tensor], strength: float = 1.0
    ) -> AbstractContextManager[Backbone]:
        """Weights plus ``strength * delta`` for keys ``"unet.<parameter>"``, exactly taken back on exit."""
        ...
