"""Working inside a host's inference mode.

ComfyUI runs every node under ``torch.inference_mode()``. A tensor made there can never meet autograd, so a
model loaded or a latent cached there would break the training that uses it later.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def normal_tensors(function: Callable[P, R]) -> Callable[P, R]:
    """Make ``function`` take and return normal tensors whatever mode it is called in.

    Inside inference mode it runs outside of it, with gradients still off. Inference tensors among its
    arguments (also as values of a dict) are replaced by normal copies.
    """

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():  # leaving would switch gradients on
                return function(*map(_normal, args), **{k: _normal(v) for k, v in kwargs.items()})
        return function(*map(_normal, args), **{k: _normal(v) for k, v in kwargs.items()})

    return wrapped  # type: ignore[return-value,unused-ignore]


def _normal(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, dict):
        return {key: _normal(item) for key, item in value.items()}
    return value
