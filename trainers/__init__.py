"""How models learn. A file per method; ``loop.py`` runs them all, ``objectives.py`` is pure maths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True, kw_only=True)
class MethodEntry:
    """Where a method lives. Nothing of it is imported before it is asked for."""

    module: str
    config_name: str
    train_name: str

    @property
    def config(self) -> type[Any]:
        """The frozen dataclass of its settings."""
        config: type[Any] = getattr(import_module(f".{self.module}", __package__), self.config_name)
        return config

    @property
    def train(self) -> Callable[..., Any]:
        """``train(base, subject, config, *, runs_root, seed, monitor, ...) -> Iterator[Event]``."""
        train: Callable[..., Any] = getattr(import_module(f".{self.module}", __package__), self.train_name)
        return train


METHODS = {
    "textual_inversion": MethodEntry(
        module="textual_inversion",
        config_name="TextualInversionConfig",
        train_name="train_textual_inversion",
    ),
    "neti": MethodEntry(module="neti", config_name="NeTIConfig", train_name="train_neti"),
    "dreambooth": MethodEntry(
        module="dreambooth", config_name="DreamBoothConfig", train_name="train_dreambooth"
    ),
    "align": MethodEntry(module="align", config_name="AlignConfig", train_name="train_align"),
    "reward_gradient": MethodEntry(
        module="reward_gradient",
        config_name="RewardGradientConfig",
        train_name="train_reward_gradient",
    ),
    "custom_diffusion": MethodEntry(
        module="custom_diffusion", config_name="CustomDiffusionConfig", train_name="train_custom_diffusion"
    ),
}
