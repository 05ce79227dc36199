"""The segmentation models at their published architectures with random weights: do they run end to end?

No weights are on a test machine, so what can be shown is that shapes, boxes, devices and post-processing are
right. Florence-2 base, OWLv2 base, SAM 2.1 tiny and IS-Net; ``tiny=True`` builds the same classes small, for
tests. A few minutes on 2 cores.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..backbones.toybox import models
from ..subjects.segmenting import Box, Point
from ..subjects.segmenting.florence2 import Florence2Locator
from ..subjects.segmenting.isnet import ISNet
from ..subjects.segmenting.owl import OwlLocator
from ..subjects.segmenting.saliency import Saliency
from ..subjects.segmenting.sam2 import Sam2
from . import bar

SIZE = (300, 200)  # of the test photo: not square, so that swapped axes show


def photo() -> Image.Image:
    image = Image.new("RGB", SIZE, (90, 140, 80))
    ImageDraw.Draw(image).ellipse((60, 40, 180, 160), fill=(200, 60, 40))
    return image


def florence2(*, tiny: bool, device: str = "cpu") -> Florence2Locator:
    """Florence-2 base: DaViT at 768 px, a BART of 6 + 6 layers."""
    from transformers import (
        BartConfig,
        CLIPImageProcessor,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
        Florence2VisionConfig,
    )

    tokenizer = _florence_tokenizer()
    width = 32 if tiny else 768
    vision: dict[str, Any] = {"depths": (1, 1, 1, 1), "embed_dim": (8, 16, 32, 64), "num_heads": (1, 2, 4, 8)}
    vision |= {"num_groups": (1, 2, 4, 8), "window_size": 4, "projection_dim": width}
    edge = 128 if tiny else 768
    layers = 1 if tiny else 6
    text = BartConfig(
        vocab_size=len(tokenizer),
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=4 if tiny else 12,
        decoder_attention_heads=4 if tiny else 12,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
    )
    config = Florence2Config(
        text_config=text.to_dict(),
        vision_config=Florence2VisionConfig(**(vision if tiny else {"projection_dim": width})).to_dict(),
        image_token_id=tokenizer.image_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    pictures = CLIPImageProcessor(
        size={"height": edge, "width": edge}, do_center_crop=False, crop_size={"height": edge, "width": edge}
    )
    pictures.image_seq_length = (edge // 32) ** 2 + 1
    model = Florence2ForConditionalGeneration(config).eval().to(device)
    reading: dict[str, Any] = {"phrase_grounding": {"banned_grounding_tokens": []}}
    processor = Florence2Processor(pictures, tokenizer, post_processor_config=reading)
    return Florence2Locator(model, processor, id="random Florence-2", max_new_tokens=12)


def owlv2(*, tiny: bool, device: str = "cpu") -> OwlLocator:
    """OWLv2 base, patch 16, at 960 px."""
    from transformers import (
        CLIPTokenizer,
        Owlv2Config,
        Owlv2ForObjectDetection,
        Owlv2ImageProcessor,
        Owlv2Processor,
    )

    tokenizer = CLIPTokenizer.from_pretrained(models.weights_dir() / "tokenizer", model_max_length=16)
    edge = 64 if tiny else 960
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer)} | (small if tiny else {})
    vision = {"image_size": edge, "patch_size": 16} | (small if tiny else {})
    config = Owlv2Config(text_config=text, vision_config=vision, projection_dim=32 if tiny else 512)
    pictures = Owlv2ImageProcessor(size={"height": edge, "width": edge})
    model = Owlv2ForObjectDetection(config).eval().to(device)
    return OwlLocator(model, Owlv2Processor(pictures, tokenizer), id="random OWLv2", threshold=0.0)


def sam2(*, tiny: bool, device: str = "cpu") -> Sam2:
    """SAM 2.1 tiny: Hiera at 1024 px."""
    from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model, Sam2Processor

    edge = 128 if tiny else 1024
    backbone: dict[str, Any] = {"image_size": [edge, edge]}
    vision: dict[str, Any] = {"backbone_feature_sizes": [[edge // s, edge // s] for s in (4, 8, 16)]}
    if tiny:
        backbone |= {"hidden_size": 16, "blocks_per_stage": [1, 1, 2, 1], "global_attention_blocks": [3]}
        backbone |= {"embed_dim_per_stage": [16, 32, 64, 128], "num_attention_heads_per_stage": [1, 1, 2, 2]}
        vision["backbone_channel_list"] = [128, 64, 32, 16]
    config = Sam2Config(
        vision_config=vision | {"backbone_config": {"model_type": "sam2_hiera_det_model"} | backbone},
        prompt_encoder_config={"image_size": edge},
    )
    pictures = Sam2ImageProcessor(
        size={"height": edge, "width": edge}, mask_size={"height": edge // 4, "width": edge // 4}
    )
    return Sam2(Sam2Model(config).eval().to(device), Sam2Processor(pictures), id="random SAM 2")


def isnet(*, tiny: bool, device: str = "cpu") -> Saliency:
    """IS-Net has one size; ``tiny`` shows it a small picture."""
    return Saliency(ISNet().eval().to(device), id="random IS-Net", edge_px=64 if tiny else 1024)


def run(quick: bool) -> dict[str, Any]:
    """Each model once; ``quick`` builds them small."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    seconds: dict[str, float] = {}
    sizes: dict[str, int] = {}
    right: dict[str, bool] = {}
    torch.manual_seed(0)
    for name, (build, check) in CHECKS.items():
        part = build(tiny=quick, device=device)
        start = time.perf_counter()
        right[name] = check(part)
        seconds[name] = round(time.perf_counter() - start, 2)
        sizes[name] = sum(p.numel() for p in part.model.parameters())
    bars = [bar(f"{name} runs end to end", value=float(ok), op="==", bar=1.0) for name, ok in right.items()]
    return {
        "numbers": {"device": device, "seconds": seconds, "parameters": sizes},
        "bars": bars,
        "seeds": [0],
    }


def finds_boxes(locator: OwlLocator) -> bool:
    """Boxes inside the photo, the best first."""
    boxes = locator.locate(photo(), "cup")
    scores = [box.score or 0.0 for box in boxes]
    inside = all(0 <= b.x0 <= b.x1 <= SIZE[0] and 0 <= b.y0 <= b.y1 <= SIZE[1] for b in boxes)
    return bool(boxes) and inside and scores == sorted(scores, reverse=True)


def grounds(locator: Florence2Locator) -> bool:
    """It answers, and an answer of the trained model is read right, in pixels of the photo."""
    answered = locator.locate(photo(), "cup")
    known = locator._boxes("</s><s>cup<loc_100><loc_200><loc_500><loc_800></s>", photo())
    wanted = (0.1 * SIZE[0], 0.2 * SIZE[1], 0.5 * SIZE[0], 0.8 * SIZE[1])
    near = len(known) == 1 and np.allclose(known[0].corners, wanted, atol=0.5)
    return isinstance(answered, list) and bool(near) and known[0].label == "cup"


def cuts(masker: Sam2) -> bool:
    """A mask of the photo's size for a box, two boxes, a point, and a box with points."""
    box, point = Box(x0=60, y0=40, x1=180, y1=160), Point(120, 100)
    prompts = [([box], []), ([box, box], []), ([], [point]), ([box], [point, Point(10, 10, inside=False)])]
    found = [masker.cut(photo(), boxes, points) for boxes, points in prompts]
    return all(c.mask_HW.shape == SIZE[::-1] and 0 <= c.confidence <= 1 for c in found)


def sees(masker: Saliency) -> bool:
    cut = masker.cut(photo(), [], [])
    return cut.mask_HW.shape == SIZE[::-1] and 0 <= cut.mask_HW.min() <= cut.mask_HW.max() <= 1


CHECKS: dict[str, tuple[Any, Any]] = {
    "Florence-2": (florence2, grounds),
    "OWLv2": (owlv2, finds_boxes),
    "SAM 2": (sam2, cuts),
    "IS-Net": (isnet, sees),
}


def _florence_tokenizer() -> Any:
    """A byte-level tokenizer with Florence-2's special tokens; the published one needs its files."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    fast.add_tokens([f"<loc_{n}>" for n in range(1000)])
    return fast
