"""Models of this machine that write, caption and find: real architectures, tiny, random, from folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from likeness.backbones.pretrained import answer
from likeness.backbones.toybox import models
from likeness.benchmarks import segmenter_shapes
from likeness.composing.captioners import FlorenceCaptioner, open_captioner
from likeness.composing.language import LocalLanguageModel
from likeness.composing.layout import Layout
from likeness.core.errors import LikenessError
from likeness.scoring.composition import OwlDetector
from PIL import Image
from transformers import BatchFeature

ITEM = {"subject": "rex", "noun": "dog", "box": [0.1, 0.5, 0.3, 0.3]}
LAYOUT = Layout.from_json(json.dumps({"version": 1, "scene": "on a lawn", "items": [ITEM]}))


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPTokenizer, GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("models") / "writer"
    tokenizer = CLIPTokenizer.from_pretrained(models.weights_dir() / "tokenizer")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_language_model_says_the_same_for_the_same_seed(writer: Path) -> None:
    model = LocalLanguageModel(writer)
    asked = [{"role": "user", "content": "a dog on a lawn"}]
    said = [model.complete(asked, seed=seed) for seed in (0, 0, 1)]
    assert said[0] == said[1] != said[2]


def test_a_folder_that_is_no_such_model_is_named(writer: Path, tmp_path: Path) -> None:
    with pytest.raises(LikenessError, match="no language model"):
        LocalLanguageModel(tmp_path)
    with pytest.raises(LikenessError, match="no captioning model"):
        open_captioner(tmp_path)
    (tmp_path / "config.json").write_bytes((writer / "config.json").read_bytes())
    for opening in (LocalLanguageModel, open_captioner, OwlDetector):
        with pytest.raises(LikenessError, match="cannot be opened"):
            opening(tmp_path)


def test_florence_describes_a_scene(tmp_path: Path) -> None:
    tiny = segmenter_shapes.florence2(tiny=True)
    tiny.processor.post_processor_config["pure_text"] = {}  # what its own folder has
    tiny.model.save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    captioner = open_captioner(tmp_path)
    assert isinstance(captioner, FlorenceCaptioner)
    assert isinstance(captioner.describe(Image.new("RGB", (48, 32)), LAYOUT, seed=0), str)


def test_owl_finds_boxes(tmp_path: Path) -> None:
    tiny = segmenter_shapes.owlv2(tiny=True)
    tiny.model.save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    detector = OwlDetector(tmp_path)
    detector.least = 0.0
    found = detector.detect(torch.rand(3, 32, 48), "dog")
    assert found == sorted(found, key=lambda one: -one[1]) and found


def test_an_answer_is_what_follows_the_question() -> None:
    class Model:
        device = "cpu"

        def generate(self, input_ids: torch.Tensor, **options: object) -> torch.Tensor:
            assert options == {"max_new_tokens": 5, "do_sample": False} and not torch.is_grad_enabled()
            return torch.cat([input_ids, torch.tensor([[7, 8]])], dim=1)

    class Processor:
        def apply_chat_template(self, messages: list[dict[str, object]], **options: object) -> BatchFeature:
            assert [part["type"] for part in messages[0]["content"]] == ["image", "text"]  # type: ignore[attr-defined, index]
            return BatchFeature({"input_ids": torch.tensor([[1, 2, 3]])})

        def batch_decode(self, ids: torch.Tensor, **options: object) -> list[str]:
            return [str(row) for row in ids.tolist()]

    said = answer(Model(), Processor(), Image.new("RGB", (8, 8)), "What?", max_tokens=5, do_sample=False)
    assert said == "[7, 8]"
