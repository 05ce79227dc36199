"""Its own text for every cross-attention layer and timestep: what mapped words (NeTI, XTI) need of a model.

All layers' prompts go through the text encoder as one batch, and reach the UNet as one long context, of which
every layer's keys and values read their own stretch. A stretch belongs to a layer by its place in the UNet,
never by a count of calls: gradient checkpointing runs layers again, in reverse order.
"""
# Shapes: S cross-attention layers, B batch, L tokens, D text width, K occurrences of words.

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from .base import LayerStates, WordMapper, WordRows
from .tokens import Spliced, scattered

BYPASS_SCALE = 0.2  # NeTI (Alaluf et al. 2023, arXiv:2305.15391), the authors' code
_PARTS = ("down_blocks", "mid_block", "up_blocks")  # the order in which they run, not that of the modules


def cross_attentions(unet: nn.Module) -> list[nn.Module]:
    """The UNet's cross-attention modules in the order in which they run (IN01 ... MID ... OUT11 in SD 1)."""
    named = [(name, module) for name, module in unet.named_modules() if re.search(r"\.attn2$", name)]
    return [module for part in _PARTS for name, module in named if name.startswith(part)]


# --- the text encoder ------------------------------------------------------------------------------------


def encode_layers(
    encoder: nn.Module,
    spliced: Spliced,
    vectors: Mapping[str, Tensor],
    mappers: Mapping[str, WordMapper],
    t_B: Tensor,
    num_layers: int,
) -> LayerStates:
    """States of the prompts at ``t_B`` for every layer. ``vectors`` and ``mappers`` are its words.

    A bypass vector b moves its word's state h before the final norm, for the values alone:
    ``h + 0.2 |h| b / |b|`` (NeTI's textual bypass).
    """
    inner: Any = getattr(encoder, "text_model", encoder)  # transformers < 5 has one level more
    words = {name: mapper(t_B) for name, mapper in mappers.items()}
    tables = {name: words[name].rows_SBD.flatten(0, 1) if name in words else vectors[name] for name in
              spliced.names}  # fmt: skip
    every = _for_every_layer(spliced, tables, words, num_layers)
    ids = every.ids.to(inner.embeddings.token_embedding.weight.device)
    with before(inner.final_layer_norm) as seen, scattered(inner.embeddings.token_embedding, every, tables):
        keys = encoder(input_ids=ids).last_hidden_state
    bypass = [word.bypass_SBD for word in words.values()]
    values = keys
    if any(part is not None for part in bypass):
        batch, position, vectors_KD = _bypasses(every, tables, words)
        moved_KD = bypassed(seen[-1][batch, position], vectors_KD, inner.final_layer_norm)
        values = keys.index_put((batch, position), moved_KD)
    shape = (num_layers, len(t_B), *keys.shape[1:])
    return LayerStates(keys.view(shape), values.view(shape))


def bypassed(states_KD: Tensor, bypass_KD: Tensor, norm: nn.Module) -> Tensor:
    """Encoded states of words before the final norm, moved by their bypass vectors, and normed."""
    length_K1 = states_KD.norm(dim=-1, keepdim=True)
    added_KD = bypass_KD / bypass_KD.norm(dim=-1, keepdim=True) * length_K1
    moved: Tensor = norm(states_KD + BYPASS_SCALE * added_KD.to(states_KD.dtype))
    return moved


def _for_every_layer(
    spliced: Spliced, tables: Mapping[str, Tensor], words: Mapping[str, WordRows], num_layers: int
) -> Spliced:
    """The batch once for every layer, layer after layer. A mapped word has a row of its own in each."""
    num_rows, mapped = len(spliced.ids), list(_owners(spliced, tables, words))
    batch, position, row = [], [], []
    for layer in range(num_layers):
        for b, at, (start, place) in zip(spliced.batch, spliced.position, mapped, strict=True):
            batch.append(layer * num_rows + b)
            position.append(at)
            row.append(start + (layer * num_rows + b if place is None else place))
    return Spliced(spliced.ids.repeat(num_layers, 1), spliced.names, batch, position, row)


def _owners(
    spliced: Spliced, tables: Mapping[str, Tensor], words: Mapping[str, WordRows]
) -> Iterator[tuple[int, int | None]]:
    """Of each occurrence: where its word's table starts among all of them, and its row; None if mapped."""
    places: list[tuple[int, int | None]] = []
    start = 0
    for name in spliced.names:
        places += [(start, None)] if name in words else [(start, n) for n in range(len(tables[name]))]
        start += len(tables[name])
    return (places[row] for row in spliced.row)


def _bypasses(
    every: Spliced, tables: Mapping[str, Tensor], words: Mapping[str, WordRows]
) -> tuple[Tensor, Tensor, Tensor]:
    """Row, position and vector of each occurrence of a word that has a bypass."""
    stacked: list[Tensor] = []
    owner: dict[int, int] = {}  # a row among all tables to the row among the bypass vectors
    start = 0
    for name in every.names:
        bypass = words[name].bypass_SBD if name in words else None
        if bypass is not None:
            owner |= {start + n: len(owner) + n for n in range(len(tables[name]))}
            stacked.append(bypass.flatten(0, 1))
        start += len(tables[name])
    vectors = torch.cat(stacked)
    chosen = [(b, at, owner[r]) for b, at, r in zip(every.batch, every.position, every.row, strict=True)
              if r in owner]  # fmt: skip
    batch, position, row = torch.tensor(chosen, device=vectors.device).reshape(-1, 3).T
    return batch, position, vectors[row]


@contextmanager
def before(module: nn.Module) -> Iterator[list[Tensor]]:
    """While open, collects what goes into ``module``."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        handle.remove()


# --- the UNet --------------------------------------------------------------------------------------------


def packed(states: LayerStates) -> Tensor:
    """All layers' keys and values as one context, (B, S * 2 * L, D)."""
    both_S2BLD = torch.stack([states.keys, states.values], dim=1)
    return both_S2BLD.permute(2, 0, 1, 3, 4).flatten(1, 3)


@contextmanager
def routed(unet: nn.Module, num_tokens: int) -> Iterator[None]:
    """While open, every cross-attention takes its own stretch of a packed context.

    A context of ``num_tokens`` is an ordinary one and passes as it is, so that this may be open twice.
    """
    stretches = _Stretches(num_tokens)
    with ExitStack() as stack:
        for number, layer in enumerate(cross_attentions(unet)):
            for side, projection in enumerate((layer.to_k, layer.to_v)):
                assert isinstance(projection, nn.Module)
                take = stretches.taking(2 * number + side)
                stack.callback(projection.register_forward_pre_hook(take).remove)
        yield


class _Stretches:
    """The stretches of a packed context, split once for all layers: so that backward joins their gradients
    once, where a slice for each would fill and add a whole context for each."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # by context, which backward may keep

    def of(self, context_BLD: Tensor) -> tuple[Tensor, ...]:
        if context_BLD not in self.known:
            # Unsafe names writing into the parts, which nobody does; a view would keep its context alive.
            self.known[context_BLD] = context_BLD.unsafe_split(self.num_tokens, dim=1)
        found: tuple[Tensor, ...] = self.known[context_BLD]
        return found

    def taking(self, number: int) -> Callable[[nn.Module, tuple[Tensor, ...]], Any]:
        def take(module: nn.Module, args: tuple[Tensor, ...]) -> Any:
            context_BLD = args[0]
            return None if context_BLD.shape[1] == self.num_tokens else (self.of(context_BLD)[number],)

        return take
