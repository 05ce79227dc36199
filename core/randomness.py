"""Randomness as a function of its arguments: one seed and stream give one draw, whoever drew before.

A trainer draws step 120's noise with ``normal(shape, seed, "noise", 120)``. To resume it needs the step and
nothing else, and neither the host's random state nor a neighbour's matters.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def generator(seed: int, *stream: int | str) -> torch.Generator:
    """A CPU generator seeded by a hash of all arguments; 1 and "1" are different streams.

    torch's CPU generator (mt19937) uses 32 bits of a seed, so two of 10,000 streams coincide with a chance
    of 1 %, which is harmless, while adding seed and step would make every stream coincide with another.
    """
    return torch.Generator().manual_seed(_hash_seed(seed, stream))


def normal(shape: Sequence[int], seed: int, *stream: int | str) -> Tensor:
    """Standard normal fp32 noise on the CPU, the same on every device it is sent to."""
    return torch.randn(tuple(shape), generator=generator(seed, *stream))


@contextmanager
def isolated_rng(seed: int, *stream: int | str) -> Iterator[None]:
    """Global random state of torch (every device), numpy and Python: seeded inside, as before outside."""
    state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    value = _hash_seed(seed, stream)
    try:
        torch.default_generator.manual_seed(value)
        if cuda_states:
            torch.cuda.manual_seed_all(value)
        np.random.seed(value % 2**32)
        random.seed(value)
        yield
    finally:
        torch.set_rng_state(state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _hash_seed(seed: int, stream: Sequence[int | str]) -> int:
    text = json.dumps([int(seed), *stream])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1  # torch takes 63 bits
