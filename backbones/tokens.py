"""Prompts to CLIP token ids, with learned placeholders spliced in.

A placeholder of N vectors takes N positions; its rows are scattered into the embedded sequence, so that
gradients reach them and the vocabulary's own matrix is never touched (Gal et al. 2022, arXiv:2208.01618).
"""
# Shapes: B batch, L tokens, D text width, N vectors.

from __future__ import annotations

import gzip
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import LikenessError
from .base import Backbone

logger = logging.getLogger(__name__)

# OpenAI's CLIP vocabulary (MIT licence, beside the file): its merges in order, one pair per line.
_MERGES = Path(__file__).parent / "vocabulary" / "clip_merges.txt.gz"
_START, _END = "<|startoftext|>", "<|endoftext|>"
CLIP_LENGTH = 77
# CLIP's own pattern: words, single digits and runs of other signs.
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True, eq=False)
class ClipTokens:
    """A CLIP tokenizer: the ids of texts, and the special ids around them."""

    backend: Any  # tokenizers.Tokenizer
    start: int
    end: int
    pad: int
    length: int  # of every prompt, start, end and padding included

    @lru_cache(maxsize=4096)  # noqa: B019, a backbone keeps its tokenizer as long as itself
    def ids(self, text: str) -> tuple[int, ...]:
        """BPE ids of ``text``, without start and end."""
        return tuple(self.backend.encode(text, add_special_tokens=False).ids)

    @property
    def num_ids(self) -> int:
        return int(self.backend.get_vocab_size())


@dataclass(frozen=True)
class Spliced:
    """Token ids (B, L), and which of them are placeholders: batch row, position, and row among the vectors
    of ``names`` laid end to end."""

    ids: Tensor
    names: tuple[str, ...]
    batch: list[int]
    position: list[int]
    row: list[int]


# --- opening -------------------------------------------------------------------------------------------


def clip_tokens(*, pad: str = _END) -> ClipTokens:
    """The tokenizer of every public Stable Diffusion: 49,408 ids."""
    lines = gzip.decompress(_MERGES.read_bytes()).decode("utf-8").split("\n")
    merges = [_pair(line) for line in lines]
    symbols = _byte_symbols()
    names = [*symbols, *(s + "</w>" for s in symbols), *("".join(m) for m in merges), _START, _END]
    return _tokens(_backend({name: n for n, name in enumerate(names)}, merges), pad, CLIP_LENGTH)


def tokens_from_folder(folder: Path) -> ClipTokens:
    """Open a diffusers ``tokenizer`` folder: vocab.json and merges.txt, or tokenizer.json."""
    from tokenizers import Tokenizer

    try:
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
            lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
            merges = [_pair(line) for line in lines if line and not line.startswith("#version")]
            backend = _backend(vocab, merges)
        else:
            backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
            backend.no_truncation()
            backend.no_padding()
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        pad = config.get("pad_token") or _END
        length = min(config.get("model_max_length", CLIP_LENGTH), CLIP_LENGTH)  # unset is written as 1e30
        return _tokens(backend, pad["content"] if isinstance(pad, dict) else pad, length)
    except Exception as error:  # tokenizers raises bare Exception
        raise LikenessError(
            f"The tokenizer in {folder} cannot be read ({error})",
            expected="tokenizer_config.json with vocab.json and merges.txt, or with tokenizer.json",
        ) from error


def _tokens(backend: Any, pad: str, length: int) -> ClipTokens:
    ids = {name: backend.token_to_id(name) for name in (_START, _END, pad)}
    if None in ids.values():
        missing = next(name for name, number in ids.items() if number is None)
        raise ValueError(f"its vocabulary lacks {missing}")
    return ClipTokens(backend, ids[_START], ids[_END], ids[pad], length)


def _backend(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> Any:
    """The Rust tokenizer set up as CLIP's."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    bpe = models.BPE(vocab=dict(vocab), merges=list(merges), end_of_word_suffix="</w>", unk_token=_END)
    backend = Tokenizer(bpe)
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return backend


def _pair(line: str) -> tuple[str, str]:
    left, right = line.split()
    return left, right


def _byte_symbols() -> list[str]:
    """The printable stand-ins of the 256 bytes, in the order of CLIP's vocabulary."""
    kept = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    return [chr(b) for b in kept] + [chr(256 + n) for n in range(256 - len(kept))]


# --- placeholders --------------------------------------------------------------------------------------


def check_placeholder(tokens: ClipTokens, name: str) -> None:
    """Raise LikenessError when ``name`` cannot be a placeholder: blank, spaced, or already one token."""
    expected, fix = "a new word such as <fish>", "Choose another placeholder"
    if not name or any(character.isspace() for character in name):
        raise LikenessError(f"The placeholder {name!r} is blank or has spaces", expected=expected, fix=fix)
    ids = tokens.ids(name)
    if len(ids) < 2:
        held = f"is already in the model's vocabulary (token {ids[0]})" if ids else "has no letters"
        raise LikenessError(f"The placeholder {name!r} {held}", expected=expected, fix=fix)


def initial_row(backbone: Backbone, word: str) -> Tensor:
    """The embedding (D,) that a placeholder starts from: the row of ``word``, or the mean of its tokens'
    rows, with a warning, when ``word`` is several tokens. LikenessError when it has none."""
    rows_ND = backbone.token_embedding(word)
    if len(rows_ND) == 0:
        raise LikenessError(f"The word {word!r} has no tokens", expected="a noun such as dog")
    if len(rows_ND) > 1:
        logger.warning("%r is %d tokens; their mean is where the embedding starts", word, len(rows_ND))
    return rows_ND.mean(dim=0)


def rows_by_encoder(rows_ND: Tensor, text_widths: Mapping[str, int]) -> dict[str, Tensor]:
    """A word's rows as each text encoder has them: ``clip_l`` and, where there are two, ``clip_g``.

    ``text_widths`` is the backbone's; side by side in its order they are the rows again.
    """
    halves = torch.split(rows_ND, list(text_widths.values()), dim=1)
    return dict(zip(text_widths, halves, strict=True))


def splice(tokens: ClipTokens, prompts: Sequence[str], sizes: Mapping[str, int]) -> Spliced:
    """Token ids of ``prompts``, where the placeholder ``name`` takes ``sizes[name]`` positions.

    Placeholders are found whatever their case, as whole words, the longest first. A prompt of more than
    75 tokens is cut, with a warning.
    """
    names = tuple(sizes)
    first, total = {}, 0
    for name in names:
        first[name.lower()] = total
        total += sizes[name]
    pattern = _placeholder_pattern(names)
    by_name = {name.lower(): sizes[name] for name in names}
    ids_BL, batch, position, row = [], [], [], []
    for b, prompt in enumerate(prompts):
        ids, rows = _pieces(tokens, pattern, prompt, first, by_name)
        if len(ids) > tokens.length - 2:
            _warn_cut(prompt, len(ids), tokens.length - 2)
            ids, rows = ids[: tokens.length - 2], rows[: tokens.length - 2]
        for at, r in enumerate(rows):
            if r is not None:
                batch.append(b)
                position.append(at + 1)
                row.append(r)
        ids = [tokens.start, *ids, tokens.end]
        ids_BL.append(ids + [tokens.pad] * (tokens.length - len(ids)))
    return Spliced(torch.tensor(ids_BL, dtype=torch.long), names, batch, position, row)


def _pieces(
    tokens: ClipTokens,
    pattern: re.Pattern[str] | None,
    prompt: str,
    first: Mapping[str, int],
    sizes: Mapping[str, int],
) -> tuple[list[int], list[int | None]]:
    """Ids and, beside each, the row of a placeholder's vector or None."""
    ids: list[int] = []
    rows: list[int | None] = []
    for piece in pattern.split(prompt) if pattern else [prompt]:
        if (name := piece.lower()) in first:
            ids += [0] * sizes[name]  # any id: its row is replaced
            rows += range(first[name], first[name] + sizes[name])
        else:
            found = tokens.ids(piece)
            ids += found
            rows += [None] * len(found)
    return ids, rows


@lru_cache(maxsize=64)
def _placeholder_pattern(names: tuple[str, ...]) -> re.Pattern[str] | None:
    """Matches any name, and keeps it when splitting. Edges that are letters must be edges of a word."""
    if not names:
        return None
    before = {n: r"(?<!\w)" if re.match(r"\w", n) else "" for n in names}
    after = {n: r"(?!\w)" if re.search(r"\w$", n) else "" for n in names}
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("(" + "|".join(before[n] + re.escape(n) + after[n] for n in longest_first) + ")", re.I)


@lru_cache(maxsize=1024)
def _warn_cut(prompt: str, num: int, kept: int) -> None:
    """Once per prompt: a training loop meets the same one at every step."""
    logger.warning("A prompt of %d tokens is cut to %d: %r", num, kept, prompt)


@contextmanager
def scattered(embedding: nn.Module, spliced: Spliced, vectors: Mapping[str, Tensor]) -> Iterator[None]:
    """While open, ``embedding``'s output carries the placeholders' rows, with gradient."""
    if not spliced.row:
        yield
        return
    stacked_ND = torch.cat([vectors[name] for name in spliced.names])
    index = torch.tensor([spliced.batch, spliced.position, spliced.row])

    def put(module: nn.Module, args: Any, out_BLD: Tensor) -> Tensor:
        b, at, row = index.to(out_BLD.device)
        rows_ND = stacked_ND.to(out_BLD.device, out_BLD.dtype)[row]
        return out_BLD.index_put((b, at), rows_ND)

    handle = embedding.register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()
