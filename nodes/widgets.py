"""Widgets that stand on many nodes: all that is the same about them."""

from __future__ import annotations

from typing import Any

from .host import io


def seed(tooltip: str) -> Any:
    """``seed``, which the page may change after each run."""
    return io.Int.Input("seed", default=0, min=0, max=2**31 - 1, control_after_generate=True, tooltip=tooltip)


def steps(default: int, tooltip: str) -> Any:
    """``steps`` of the denoising of a picture."""
    return io.Int.Input("steps", default=default, min=1, max=1000, tooltip=tooltip)


def guidance(default: float, tooltip: str) -> Any:
    """``guidance`` of a picture; 1 turns it off."""
    return io.Float.Input("guidance", default=default, min=1.0, max=30.0, step=0.1, tooltip=tooltip)


def batch_size(default: int, tooltip: str) -> Any:
    """``batch_size``: pictures that are drawn or looked at together, which changes nothing but the speed."""
    return io.Int.Input("batch_size", default=default, min=1, max=256, tooltip=tooltip)


def share(name: str, default: float, tooltip: str) -> Any:
    """A number from 0 to 1."""
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.05, tooltip=tooltip)
