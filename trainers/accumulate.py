"""The gradient of one step: backward through its forwards, or through one process's share of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from ..core.errors import LikenessError, NonFiniteLoss
from .method import LoopConfig, Method


def gradient(
    method: Method, config: LoopConfig, step: int, *, rank: int = 0, size: int = 1
) -> dict[str, float]:
    """Backward through process ``rank``'s share of the step after ``step``; the means of its loss and terms.

    The mean over ``size`` processes, of gradients as of values, is what one alone has, up to rounding.
    Raises NonFiniteLoss, with no gradient left behind.
    """
    num = forwards(config, size)
    sums: dict[str, float] = {}
    for batch in share(method, config, step, rank=rank, size=size):
        result = method.loss(batch)
        named = {**result.terms, "loss": result.total}  # the term that broke is named before the sum
        values = {name: float(value.detach()) for name, value in named.items()}
        for name, value in values.items():
            require_finite(method, config, step, name, value)
        torch.autograd.backward(result.total / num)
        sums = {name: sums.get(name, 0.0) + value / num for name, value in values.items()}
    return sums


def share(method: Method, config: LoopConfig, step: int, *, rank: int, size: int) -> Iterator[Any]:
    """Whole forwards where they can be dealt out evenly, else every ``size``-th row of each."""
    num = config.accumulation
    if num % size == 0:
        yield from (method.batch(step * num + n) for n in range(rank, num, size))
    else:
        rows = slice(rank, None, size)
        yield from (method.part(method.batch(step * num + n), rows) for n in range(num))


def forwards(config: LoopConfig, size: int) -> int:
    """How many of a step's forwards, whole or in part, each of ``size`` processes computes."""
    return config.accumulation // size if config.accumulation % size == 0 else config.accumulation


def require_divisible(config: LoopConfig, size: int) -> None:
    """LikenessError unless all get the same: a mean over unequal parts would weigh rows unequally."""
    num, rows = config.accumulation, config.rows_per_batch
    if num % size and rows % size:
        raise LikenessError(
            f"{size} processes cannot share a step of {num} x {rows} rows evenly",
            expected=f"a batch_size that {size} divides",
            fix="Change batch_size, or the number of processes.",
        )


def require_finite(method: Method, config: LoopConfig, step: int, term: str, value: float) -> None:
    if math.isfinite(value):
        return
    for p in method.parameters().values():
        p.grad = None
    raise NonFiniteLoss(
        f"At step {step + 1} of {config.steps} the {term} became {value}.",
        expected="a finite number",
        fix=f"Lower the learning rate ({config.learning_rate:g}), or use bf16 or fp32.",
    )


def out_of_memory(error: RuntimeError) -> LikenessError | None:
    """Advice, when memory ran out; None for any other error."""
    text = str(error)
    if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in text:
        return None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return LikenessError(
        f"Memory ran out while training: {text.splitlines()[0]}",
        fix="Use a smaller batch_size (with accumulation), turn gradient_checkpointing on, or choose bf16. "
        "The run goes on from its last checkpoint.",
    )
