import random

import numpy as np
import pytest
import torch
from likeness.core.randomness import generator, isolated_rng, normal


def test_golden_draw():
    """A resumed run needs the same draw from another process, on another day."""
    expected = torch.tensor([0.5978763699531555, -0.16803507506847382, -1.2798078060150146])
    assert torch.equal(normal((3,), 7, "noise", 120), expected)


def test_a_draw_is_a_function_of_its_arguments():
    first = normal((2, 3), 1, "noise", 5)
    torch.manual_seed(99)
    torch.rand(10)
    assert torch.equal(normal((2, 3), 1, "noise", 5), first)


def test_every_argument_counts():
    streams = [(1,), (2,), (1, 1), (1, "1"), (1, "a", 1), (1, "a1"), (1, 1, "a"), (11,), (-1,), (2**70,)]
    assert len({torch.rand(4, generator=generator(*stream)).sum().item() for stream in streams}) == len(
        streams
    )


def states():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]


def test_inside_is_seeded_and_outside_undisturbed():
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = states()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    with isolated_rng(1, "caching"):
        inside = states()
    assert states() == expected
    with isolated_rng(1, "caching"):
        assert states() == inside
    with isolated_rng(2, "caching"):
        assert states() != inside


def test_an_error_inside_restores_too():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with pytest.raises(KeyError), isolated_rng(1):
        torch.rand(1)
        raise KeyError
    assert torch.equal(torch.rand(3), expected)
