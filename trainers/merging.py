"""Merging separately trained subjects in closed form (Kumari et al. 2022, arXiv:2212.04488, section 3.3, eq.
8).

    W' = argmin |(W' - W) C_reg^T|   subject to   W' K^T = V^T
    W' = W + (V^T - W K^T) (d K^T)^-1 d,    d = K (C_reg^T C_reg)^-1

K holds the text states of every subject's words, V what its own trained layer makes of them.
"""
# Shapes: N constraint rows, M regularisation rows, D text width, O output features.

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..backbones.base import Backbone
from ..concepts.applying import fit
from ..concepts.concept import Artifact, Concept
from ..concepts.words import bundled_tensors
from ..core.errors import LikenessError

TEMPLATES = ("{}", "photo of a {}")  # the authors': from its first token, and from the fourth
# What the layers must go on doing: our own captions, in the place of the authors' 200 of LAION.
NOUNS = (
    *("dog", "cat", "bird", "fish", "horse", "car", "boat", "house", "tree", "flower", "person", "child"),
    *("chair", "table", "cup", "book", "ball", "toy", "bottle", "bag", "shoe", "clock", "robot", "bear"),
)
PLACES = (
    "",
    "on the beach",
    "in the snow",
    "in a city",
    "in the forest",
    "on a table",
    "at night",
    "in a room",
)


def merged_weight(weight_OD: Tensor, keys_ND: Tensor, values_NO: Tensor, regularisation_MD: Tensor) -> Tensor:
    """The closed form for one layer, computed in float64.

    Differs: with fewer regularisation rows than the text is wide, their product has no inverse; a millionth
    of its mean diagonal is added, which leaves the constraints exact.
    """
    w_OD, k_ND, v_NO = weight_OD.double(), keys_ND.double(), values_NO.double()
    c_MD = regularisation_MD.double()
    gram_DD = c_MD.T @ c_MD
    gram_DD = gram_DD + torch.eye(len(gram_DD), dtype=torch.float64) * (1e-6 * gram_DD.diagonal().mean())
    d_ND = torch.linalg.solve(gram_DD, k_ND.T).T
    # Rows of K may nearly repeat: the least-squares solution meets them all the same.
    left_ON = torch.linalg.lstsq((d_ND @ k_ND.T).T, v_NO - k_ND @ w_OD.T, driver="gelsd").solution.T
    merged_OD: Tensor = (w_OD + left_ON @ d_ND).to(weight_OD.dtype)
    return merged_OD


def merge_concepts(backbone: Backbone, concepts: Sequence[Concept]) -> Artifact:
    """One delta that knows every concept's words. Each must be a Custom Diffusion concept of this base model.

    Raises LikenessError for fewer than two, for other kinds, and for two that answer to one token.
    """
    if len(concepts) < 2:
        raise LikenessError("Merging takes two or more concepts", expected="two Custom Diffusion concepts")
    fits = [fit(concept, backbone) for concept in concepts]
    for concept, one in zip(concepts, fits, strict=True):
        if concept.kind != "delta" or not one.embeddings or not all(".attn2.to_" in k for k in one.deltas):
            raise LikenessError(
                f"{concept.path.name} is no Custom Diffusion concept",
                expected="the result of Train Custom Diffusion",
            )
    tokens = [token for one in fits for token in one.embeddings]
    if len(set(tokens)) < len(tokens):
        raise LikenessError(
            "Two of the concepts answer to the same token", fix="Train one under another name"
        )
    words = [_words(concept, one.embeddings) for concept, one in zip(concepts, fits, strict=True)]
    keys = [_key_rows(backbone, own, one.embeddings) for own, one in zip(words, fits, strict=True)]
    layers = sorted(
        {key for one in fits for key in one.deltas if ".attn2.to_k" in key or ".attn2.to_v" in key}
    )
    base = dict(backbone.module("unet").named_parameters())
    captions = [f"photo of a {noun} {place}".strip() for noun in NOUNS for place in PLACES]
    regularisation_MD = _rows(backbone, captions, {}, skip=1)
    deltas = {}
    for layer in layers:
        weight_OD = base[layer.removeprefix("unet.")].detach().float().cpu()
        values = [
            k_ND @ (weight_OD + one.deltas.get(layer, torch.zeros_like(weight_OD)).float().cpu()).T
            for k_ND, one in zip(keys, fits, strict=True)
        ]
        deltas[layer] = (
            merged_weight(weight_OD, torch.cat(keys), torch.cat(values), regularisation_MD) - weight_OD
        )
    rows = bundled_tensors(backbone, {t: e.float() for one in fits for t, e in one.embeddings.items()})
    flat = [pair for own in words for pair in own]
    return Artifact(
        kind="delta",
        tensors={**deltas, **rows},
        trigger=" and ".join(f"{token} {noun}".strip() for token, noun in flat),
        class_noun=" and ".join(noun for _, noun in flat),
        metadata={
            "method": "custom_diffusion merge",
            "words": [list(pair) for pair in flat],
            "merged": [concept.sha256 for concept in concepts],
        },
    )


def _words(concept: Concept, embeddings: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    known = {str(token): str(noun) for token, noun in concept.metadata.get("words", [])}
    return [(token, known.get(token, "")) for token in embeddings]


def _key_rows(
    backbone: Backbone, words: Sequence[tuple[str, str]], embeddings: Mapping[str, Tensor]
) -> Tensor:
    """Text states of a concept's words in both templates, from the word's place to the end sign.

    Differs: the authors take the padding after the end too, which for several subjects would be more
    constraints than a narrow text encoder has dimensions.
    """
    rows = []
    for token, noun in words:
        for template in TEMPLATES:
            prompt = template.replace("{}", f"{token} {noun}".strip())
            start = 1 + len(backbone.token_ids(template.split("{}")[0].strip()))
            rows.append(_rows(backbone, [prompt], embeddings, skip=start))
    distinct: Tensor = torch.unique(torch.cat(rows), dim=0)
    return distinct


def _rows(
    backbone: Backbone, prompts: Sequence[str], embeddings: Mapping[str, Tensor], *, skip: int
) -> Tensor:
    """Text states of prompts, from position ``skip`` to the end sign, one below the other."""
    parts = []
    for start in range(0, len(prompts), 32):
        chunk = list(prompts[start : start + 32])
        with torch.no_grad():
            states_BLD = backbone.encode_prompts(chunk, embeddings=embeddings).context.float().cpu()
        for prompt, states_LD in zip(chunk, states_BLD, strict=True):
            end = _length(backbone, prompt, embeddings)
            parts.append(states_LD[skip:end])
    return torch.cat(parts)


def _length(backbone: Backbone, prompt: str, embeddings: Mapping[str, Tensor]) -> int:
    """Positions up to and with the end sign."""
    num = 2
    for token, rows_ND in embeddings.items():
        num += prompt.count(token) * len(rows_ND)
        prompt = prompt.replace(token, " ")
    return num + len(backbone.token_ids(prompt))
