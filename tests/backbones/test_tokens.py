"""Prompts to ids: CLIP's own vocabulary, placeholders, cutting, and the errors."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.backbones.sd import SDBackbone
from likeness.backbones.tokens import (
    ClipTokens,
    check_placeholder,
    clip_tokens,
    initial_row,
    splice,
    tokens_from_folder,
)
from likeness.core.errors import LikenessError


@pytest.fixture(scope="module")
def clip() -> ClipTokens:
    return clip_tokens()


@pytest.fixture(scope="module")
def tiny(tiny_pipeline: Path) -> ClipTokens:
    return tokens_from_folder(tiny_pipeline / "tokenizer")


def test_published_ids(clip: ClipTokens) -> None:
    known = {"cat": 2368, "dog": 1929, "sks": 48136, "ohwx": 47993, "*": 265, "background": 5994}
    known |= {"object": 14115, "toy": 5988, "motorbike": 33341, "sculpture": 8757, "teddy": 11798}
    assert {word: clip.ids(word) for word in known} == {word: (number,) for word, number in known.items()}
    assert (clip.num_ids, clip.start, clip.end, clip.pad) == (49408, 49406, 49407, 49407)
    assert clip_tokens(pad="!").pad == 0
    assert all(len(clip.ids(text)) > 1 for text in ("plushie", "stuffed animal", "wooden pot"))


LETTERS = "abcXYZ 0123456789\t\n.,!?'<>|*&\u00e9\u00df\u4e2d\U0001f41f\u0301"


@settings(max_examples=25, deadline=None)
@given(text=st.text(alphabet=LETTERS, max_size=30))
def test_ids_equal_transformers(tiny_pipeline: Path, tiny: ClipTokens, text: str) -> None:
    theirs = _transformers_tokenizer(tiny_pipeline)
    assert list(tiny.ids(text)) == theirs(text, add_special_tokens=False)["input_ids"]


_cache: dict[Path, Any] = {}


def _transformers_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    if folder not in _cache:
        _cache[folder] = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    return _cache[folder]


def test_a_tokenizer_in_one_file_opens_too(tiny_pipeline: Path, tiny: ClipTokens, tmp_path: Path) -> None:
    _transformers_tokenizer(tiny_pipeline).save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    (tmp_path / "vocab.json").unlink(missing_ok=True)
    again = tokens_from_folder(tmp_path)
    text = "a photo of a teapot, 3 cats"
    assert (again.ids(text), again.pad) == (tiny.ids(text), tiny.pad)


def test_a_placeholder_takes_as_many_positions_as_it_has_vectors(tiny: ClipTokens) -> None:
    spliced = splice(tiny, ["a photo of <Fish>, with <hat>", "<fish>"], {"<fish>": 3, "<hat>": 1})
    at = list(zip(spliced.batch, spliced.position, spliced.row, strict=True))
    assert at == [(0, 4, 0), (0, 5, 1), (0, 6, 2), (0, 9, 3), (1, 1, 0), (1, 2, 1), (1, 3, 2)]
    row = spliced.ids[0].tolist()
    assert row[:4] == [tiny.start, *tiny.ids("a photo of")]
    assert row[7:9] == [*tiny.ids(","), *tiny.ids("with")]
    assert row[10:] == [tiny.end] + [tiny.pad] * 66


def test_placeholders_are_whole_words_the_longest_first(tiny: ClipTokens) -> None:
    sizes = {"zub": 1, "zub-2": 2}
    assert splice(tiny, ["zub-2 zub"], sizes).row == [1, 2, 0]
    assert splice(tiny, ["zubs azub"], sizes).row == []


def test_a_long_prompt_is_cut_with_one_warning(tiny: ClipTokens, caplog: pytest.LogCaptureFixture) -> None:
    prompt = "dog " * 74 + "<fish> cut here"
    with caplog.at_level(logging.WARNING):
        spliced = splice(tiny, [prompt], {"<fish>": 2})
        splice(tiny, [prompt], {"<fish>": 2})
    assert spliced.ids.shape == (1, 77)
    assert spliced.ids[0, -1] == tiny.end
    assert spliced.position == [75]
    assert ["cut to 75" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize("name", ["*", "dog", "sks", "", "a b", "<a b>"])
def test_a_placeholder_that_collides_is_refused(clip: ClipTokens, name: str) -> None:
    with pytest.raises(LikenessError, match="placeholder"):
        check_placeholder(clip, name)


def test_colliding_embeddings_are_refused_where_they_enter(backbone: SDBackbone) -> None:
    with pytest.raises(LikenessError, match="vocabulary"):
        backbone.with_embeddings({"dog": torch.zeros(1, 32)})
    with pytest.raises(LikenessError, match=r"\(vectors, 32\)"):
        backbone.encode_prompts(["a <fish>"], embeddings={"<fish>": torch.zeros(1, 768)})


def test_an_initial_word_of_several_tokens_is_their_mean(
    backbone: SDBackbone, caplog: pytest.LogCaptureFixture
) -> None:
    table = backbone.text_encoder.get_input_embeddings().weight  # type: ignore[operator]
    (dog,) = backbone.token_ids("dog")
    assert torch.equal(initial_row(backbone, "dog"), table[dog])
    assert not caplog.records
    ids = backbone.token_ids("stuffed dog")
    torch.testing.assert_close(initial_row(backbone, "stuffed dog"), table[ids].mean(0))
    assert "their mean" in caplog.text
    with pytest.raises(LikenessError, match="no tokens"):
        initial_row(backbone, "  ")


@pytest.mark.parametrize("broken", ["vocab.json", "tokenizer_config.json"])
def test_a_broken_tokenizer_is_named(tiny_pipeline: Path, tmp_path: Path, broken: str) -> None:
    for file in (tiny_pipeline / "tokenizer").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / broken).write_text("{torn")
    with pytest.raises(LikenessError, match="tokenizer"):
        tokens_from_folder(tmp_path)
