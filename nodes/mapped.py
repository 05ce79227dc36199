"""A NeTI word on ComfyUI's own MODEL and CLIP: keys and values for every cross-attention at each timestep.

The CLIP marks what it encodes with the tokens that it was made of. When the MODEL runs a timestep, marked
prompts pass that CLIP once more, all layers as one batch, and a patch hands each layer its own. Whatever
combines conditionings stays possible: a stretch of the context is replaced where it is the marked prompt's,
and nowhere else.
"""
# Shapes: S cross-attention layers, M = S times a prompt's chunks, L tokens of a chunk, D text width, B batch.

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..core.errors import LikenessError

if TYPE_CHECKING:
    from torch import Tensor

    from ..backbones.base import WordRows
    from ..backbones.mapper import Mapper

log = logging.getLogger(__name__)
MARK = "likeness_prompts"
KEPT = 8  # contexts kept between two calls: the parts of one step, not of a whole run
MIDDLE = 500  # the timestep of the one vector that stands for a word where there is no time


@dataclass(frozen=True, eq=False)
class Word:
    """A mapped word, and the row that stands for it among the tokens."""

    mapper: Mapper
    row_D: Tensor


def stand_in(mapper: Mapper) -> Tensor:
    """The middle layer's vector at the middle timestep."""
    import torch

    with torch.inference_mode(False), torch.no_grad():
        rows: WordRows = mapper(torch.tensor([MIDDLE]))
        return rows.rows_SBD[mapper.num_layers // 2, 0].clone()


def check_shape(model: Any, mapper: Mapper, name: str) -> None:
    """LikenessError when the word was learned on a model of another shape."""
    width = model.model.model_config.unet_config.get("context_dim")
    layers = len(places(model.model.diffusion_model))
    if (mapper.num_layers, mapper.width) != (layers, width):
        raise LikenessError(
            f"{name} is a NeTI word for {mapper.num_layers} cross-attentions of a text width of "
            f"{mapper.width}, and this model has {layers} of {width}",
            expected="a model of the shape that it was trained on",
        )


def places(unet: Any) -> dict[tuple[str, int, int], int]:
    """Core's (block, its number, transformer in it) to the layer's number, in the order in which they run."""
    blocks = [("input", n, block) for n, block in enumerate(getattr(unet, "input_blocks", ()))]
    blocks += [("middle", 0, getattr(unet, "middle_block", ()))]
    blocks += [("output", n, block) for n, block in enumerate(getattr(unet, "output_blocks", ()))]
    found = [
        (kind, number, depth)
        for kind, number, block in blocks
        for layer in block
        for depth in range(len(getattr(layer, "transformer_blocks", ())))
    ]
    return {place: number for number, place in enumerate(found)}


# --- the CLIP's side -------------------------------------------------------------------------------


@dataclass(eq=False)
class Prompt:
    """What one conditioning was made of."""

    tokens: Mapping[str, Sequence[Any]]
    clip: Any
    plain_1LD: Tensor
    words: Sequence[Word]
    seen: OrderedDict[int, tuple[Tensor, Tensor]] = field(default_factory=OrderedDict)

    def states(self, t: int) -> tuple[Tensor, Tensor]:
        """Keys and values of every layer at ``t``, (S, L, D)."""
        if t not in self.seen:
            self.seen[t] = _encode(self, t)
            while len(self.seen) > KEPT:
                self.seen.popitem(last=False)
        return self.seen[t]


class Prompts:
    """A row of prompts among core's conditions (``comfy.conds``): repeated and joined with the batch."""

    def __init__(self, rows: Sequence[Prompt | None]) -> None:
        self.cond = tuple(rows)

    def process_cond(self, batch_size: int, **_: Any) -> Prompts:
        return Prompts((self.cond * batch_size)[:batch_size])

    def can_concat(self, other: object) -> bool:
        return isinstance(other, Prompts)

    def concat(self, others: Sequence[Prompts]) -> tuple[Prompt | None, ...]:
        return sum((other.cond for other in others), self.cond)

    def size(self) -> list[int]:
        return [1]


def marking(clip: Any, words: Sequence[Word]) -> Any:
    """A clone of core's CLIP whose conditionings say what they were made of; so do clones of it."""
    import comfy.sd

    class Marking(comfy.sd.CLIP):  # type: ignore[misc,unused-ignore]
        likeness_words: Sequence[Word]

        def clone(self) -> Any:
            copy = super().clone()
            copy.__class__ = Marking
            copy.likeness_words = self.likeness_words
            return copy

        def encode_from_tokens_scheduled(self, tokens: Any, *args: Any, **options: Any) -> Any:
            scheduled = super().encode_from_tokens_scheduled(tokens, *args, **options)
            for cond, more in scheduled:
                mark = Prompt(tokens, self, cond, self.likeness_words) if self._named(tokens) else None
                more["model_conds"] = {**more.get("model_conds", {}), MARK: Prompts([mark])}
            return scheduled

        def _named(self, tokens: Mapping[str, Any]) -> bool:
            return any(_found(token, self.likeness_words) for _, _, token in _tokens(tokens))

    marked = clip.clone()
    marked.__class__ = Marking
    marked.likeness_words = tuple(words)
    return marked


def _tokens(tokens: Mapping[str, Sequence[Any]]) -> Iterator[tuple[int, int, Any]]:
    """Chunk, position and token of the first encoder."""
    for chunk, pairs in enumerate(next(iter(tokens.values()))):
        for position, pair in enumerate(pairs):
            yield chunk, position, pair[0]


def _found(token: Any, words: Sequence[Word]) -> Word | None:
    """The word whose stand-in a token is."""
    import torch

    if not torch.is_tensor(token):
        return None
    return next((word for word in words if torch.equal(token.flatten().cpu(), word.row_D)), None)


def _encode(prompt: Prompt, t: int) -> tuple[Tensor, Tensor]:
    """The prompt through its CLIP for every layer, with core's own weighting of ``(words:1.2)``."""
    import torch

    from ..backbones.layered import before, bypassed

    encoder = _ready(prompt.clip)
    rows = {id(word): word.mapper(torch.tensor([t])) for word in prompt.words}
    pairs = next(iter(prompt.tokens.values()))
    mapped = [(c, p, word) for c, p, token in _tokens(prompt.tokens) if (word := _found(token, prompt.words))]
    layers = prompt.words[0].mapper.num_layers
    batch = [[token for token, *_ in chunk] for _ in range(layers) for chunk in pairs]
    for layer in range(layers):
        for chunk, position, word in mapped:
            batch[layer * len(pairs) + chunk][position] = rows[id(word)].rows_SBD[layer, 0]
    norm = encoder.transformer.text_model.final_layer_norm
    with before(norm) as seen:
        keys_MLD = encoder.encode(batch)[0]
    values_MLD = keys_MLD.clone()
    for chunk, position, word in mapped:
        bypass_SBD = rows[id(word)].bypass_SBD
        if bypass_SBD is not None:
            states_SD = seen[-1][chunk :: len(pairs), position]
            values_MLD[chunk :: len(pairs), position] = bypassed(
                states_SD, bypass_SBD[:, 0].to(states_SD.device), norm
            ).to(values_MLD)
    weights_KL = torch.tensor([[pair[1] for pair in chunk] for chunk in pairs]).to(keys_MLD)
    if bool((weights_KL != 1).any()):
        keys_MLD, values_MLD = _weighted(encoder, weights_KL, keys_MLD, values_MLD)
    shape = (layers, -1, keys_MLD.shape[-1])
    return keys_MLD.reshape(shape), values_MLD.reshape(shape)


def _weighted(encoder: Any, weights_KL: Tensor, *states: Tensor) -> list[Tensor]:
    """``ClipTokenWeightEncoder``'s: a token's state, so much farther from the empty prompt's."""
    import comfy.sd1_clip

    length = weights_KL.shape[1]
    empty_1LD = encoder.encode([comfy.sd1_clip.gen_empty_tokens(encoder.special_tokens, length)])[0]
    weights_ML1 = weights_KL.repeat(len(states[0]) // len(weights_KL), 1)[..., None]
    return [(state - empty_1LD) * weights_ML1 + empty_1LD for state in states]


def _ready(clip: Any) -> Any:
    """The encoder with the weights, patches and options of this CLIP."""
    clip.cond_stage_model.reset_clip_options()
    if clip.layer_idx is not None:
        clip.cond_stage_model.set_clip_options({"layer": clip.layer_idx})
    clip.load_model()
    return getattr(clip.cond_stage_model, clip.cond_stage_model.clip)


# --- the MODEL's side ------------------------------------------------------------------------------


def give_layers_their_own(model: Any, clip: Any) -> None:
    """Put on ``model``, a clone of the user's, what reads the marks. ``clip`` is kept loaded beside it."""
    import comfy.patcher_extension

    number_of = places(model.model.diffusion_model)

    def with_states(
        executor: Any, x: Any, timesteps: Any, context: Any = None, y: Any = None, control: Any = None,
        transformer_options: Mapping[str, Any] = {}, **more: Any,
    ) -> Any:  # fmt: skip
        prompts = more.pop(MARK, None)
        if prompts is not None and any(prompts) and context is not None:
            own = per_layer(prompts, timesteps, context)
            transformer_options = {**transformer_options, MARK: own}
        return executor(x, timesteps, context, y, control, transformer_options, **more)

    def own_states(n: Any, context: Any, value: Any, extra: Mapping[str, Any]) -> Any:
        own, block = extra.get(MARK), extra.get("block")
        if own is None or block is None:
            return n, context, value
        number = number_of[block[0], block[1], extra.get("block_index", 0)]
        return n, *(states_SBLD[number] for states_SBLD in own)

    kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
    model.add_wrapper_with_key(kind, MARK, with_states)
    model.set_model_attn2_patch(own_states)
    model.set_additional_models(MARK, [clip.patcher])


def per_layer(prompts: Sequence[Prompt | None], t_B: Tensor, context_BLD: Tensor) -> tuple[Tensor, Tensor]:
    """The context of every layer, (S, B, L, D), for keys and for values."""
    layers = next(p.words[0].mapper.num_layers for p in prompts if p is not None)
    keys = context_BLD[None].repeat(layers, 1, 1, 1)
    values = keys.clone()
    for row, prompt in enumerate(prompts):
        if prompt is None:
            continue
        plain_LD, places = prompt.plain_1LD[0].to(context_BLD), 0
        length = len(plain_LD)
        for start in range(0, context_BLD.shape[1] - length + 1, length):
            stretch = slice(start, start + length)
            if bool((context_BLD[row, stretch] == plain_LD).all()):
                key_SLD, value_SLD = prompt.states(round(float(t_B[row])))
                keys[:, row, stretch], values[:, row, stretch] = key_SLD.to(keys), value_SLD.to(keys)
                places += 1
        if not places:
            log.warning("A conditioning was changed after CLIP Text Encode: its NeTI word is the same "
                        "at every layer and timestep there.")  # fmt: skip
    return keys, values
