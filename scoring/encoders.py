"""The feature extractors that scores are made of: CLIP, and DINO or the encoder in its role.

Every one opens from files that are already on this machine and says what to put where when they are not.
``"toybox"`` is the built-in world's own pair under their own names, since their scores say nothing beside
those of the full-size models. ``"standard"`` is the pair that published numbers come from: CLIP ViT-B/32
(Radford et al. 2021, arXiv:2103.00020) and DINO v1 ViT-S/16 (Caron et al. 2021, arXiv:2104.14294), and
``"open_clip:ViT-B-32=weights.safetensors"`` may stand in for its CLIP.
"""
# Shapes: B pictures, D feature width, H W picture height and width in pixels.

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..backbones.device import device_name
from ..core.errors import LikenessError
from ..core.hashing import hash_file, hash_json
from ..core.packages import require

log = logging.getLogger(__name__)

CLIP_ID = "openai/clip-vit-base-patch32"
DINO_ID = "facebook/dino-vits16"
TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))


class ImageEncoder(Protocol):
    """Pictures to features. ``id``, ``weights_hash`` and ``preprocessing`` go into every result."""

    id: str
    label: str  # how a column is headed: "CLIP", "Toybox identity"
    weights_hash: str
    preprocessing: str

    def encode(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """(B, 3, H, W) in [0, 1], or (3, H, W) of any sizes, to (B, D) unit rows: fp32, on the CPU."""
        ...

    def embed(self, images_B3HW: Tensor) -> Tensor:
        """``encode`` with gradients into the pictures: (B, D) unit rows, fp32, on the model's device."""
        ...


class TextImageEncoder(ImageEncoder, Protocol):
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts to (B, D) unit rows in the space of the pictures: fp32, on the CPU."""
        ...


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """What a scorecard is made with: ``clip`` for CLIP-T and CLIP-I, ``dino`` for identity."""

    clip: TextImageEncoder
    dino: ImageEncoder


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Short side to ``resize`` px (bicubic, antialiased), centre crop to ``crop`` px, normalise.

    It runs in PIL on 8-bit pixels, as the published evaluations do, so that a picture scores the same from
    memory, from its PNG, and on any device.
    """

    resize: int
    crop: int
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __call__(self, images: Tensor | Iterable[Tensor]) -> Tensor:
        mean_311, std_311 = (torch.tensor(v).view(3, 1, 1) for v in (self.mean, self.std))
        return torch.stack([(self._square(image_3HW) - mean_311) / std_311 for image_3HW in images])

    def _square(self, image_3HW: Tensor) -> Tensor:
        image = to_pil(image_3HW)
        width, height = image.size
        short = min(width, height)
        if short != self.resize:
            # int(), not round(): torchvision's Resize, which CLIP and DINO were published with
            size = (int(self.resize * width / short), int(self.resize * height / short))
            image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = (round((edge - self.crop) / 2.0) for edge in image.size)
        return to_tensor(image.crop((left, top, left + self.crop, top + self.crop)))

    def differentiable(self, images_B3HW: Tensor) -> Tensor:
        """The same on tensors, with gradients: antialiased bicubic as in PIL, without 8-bit rounding."""
        height, width = images_B3HW.shape[-2:]
        short = min(height, width)
        x = images_B3HW.float()
        if short != self.resize:
            size = (int(self.resize * height / short), int(self.resize * width / short))
            x = F.interpolate(x, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (round((edge - self.crop) / 2.0) for edge in x.shape[-2:])
        x = x[..., top : top + self.crop, left : left + self.crop]
        mean_311, std_311 = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (self.mean, self.std))
        return (x - mean_311) / std_311

    def __str__(self) -> str:
        normalise = f", mean {_numbers(self.mean)} std {_numbers(self.std)}" if self.std != (1, 1, 1) else ""
        return f"8-bit RGB, short side {self.resize} bicubic, centre crop {self.crop}{normalise}"


def _numbers(values: Sequence[float]) -> str:
    return "/".join(f"{v:g}" for v in values)


# openai/CLIP clip/clip.py, _transform
CLIP_PREPROCESSING = Preprocessing(
    resize=224,
    crop=224,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
# facebookresearch/dino, eval_knn.py
# Differs: the hub's own processor squashes to 224 px without a crop, and gives other numbers.
DINO_PREPROCESSING = Preprocessing(
    resize=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


def to_pil(image_3HW: Tensor) -> Image.Image:
    """A picture in [0, 1] as the 8-bit RGB that its PNG would hold."""
    pixels_HW3 = (image_3HW.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(pixels_HW3.contiguous().numpy(), mode=None)


def to_tensor(image: Image.Image) -> Tensor:
    """A picture to (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


# --- opening ------------------------------------------------------------------------------------------


def open_encoders(
    name: str = "standard",
    *,
    device: str = "auto",
    clip: str = CLIP_ID,
    dino: str = DINO_ID,
    roots: Sequence[Path] = (),
) -> Encoders:
    """The encoders that judge pictures of a backbone family, or of a named set.

    ``name`` is ``"toybox"``, ``"standard"``, or a backbone's family: every family but Toybox is judged by the
    standard pair. ``clip`` and ``dino`` are folders on this machine in transformers' layout, or ids that are
    looked up below ``roots``, ``$LIKENESS_MODELS`` and the local Hugging Face cache; ``clip`` may also be
    ``"open_clip:ARCHITECTURE=weights.safetensors"``. Raises ``LikenessError`` when files are missing.
    """
    device = device_name(device)
    with torch.inference_mode(False):  # ComfyUI runs nodes in inference mode; weights must outlive it
        if name == "toybox":
            return _open_toybox(device)
        if clip.startswith("open_clip:"):
            text_image: TextImageEncoder = clip_from_open_clip(clip, device=device)
        else:
            folder = find_model(clip, roots)
            text_image = clip_from_folder(folder, id=_public_id(clip, folder), device=device)
        folder = find_model(dino, roots)
        identity = dino_from_folder(folder, id=_public_id(dino, folder), device=device)
        return Encoders(clip=text_image, dino=identity)


def find_model(source: str, roots: Sequence[Path] = ()) -> Path:
    """The folder of a model in transformers' layout: ``source`` itself, or ``source`` below a known root.

    Looks in ``roots``, then ``$LIKENESS_MODELS``, then the local Hugging Face cache; never on the network.
    """
    given = Path(source).expanduser()
    if given.is_file() and given.suffix == ".safetensors":
        given = given.parent
    named = os.getenv("LIKENESS_MODELS")
    below = [*roots, *([Path(named)] if named else [])]
    places = [given, *(root / part for root in below for part in (source, given.name)), *_cached(source)]
    for place in places:
        if (place / "config.json").is_file():
            return place
    home = below[0] / source if below else given
    raise LikenessError(
        f"The model {source!r}, which scores pictures, is not on this machine",
        expected=f"a folder {home} with config.json and model.safetensors"
        + (" and tokenizer.json (or vocab.json and merges.txt)" if "clip" in source else ""),
        fix=f"Download {source} from the Hugging Face hub and copy it there, or put it below the folder that "
        "the variable LIKENESS_MODELS names. Likeness never downloads by itself.",
    )


def _public_id(source: str, folder: Path) -> str:
    """The id that was asked for; of a path only the folder's name, since results are shared."""
    return folder.name if Path(source).expanduser().exists() else source


def _cached(source: str) -> list[Path]:
    """Snapshots of ``owner/name`` that another program left in the local Hugging Face cache."""
    home = os.getenv("HF_HOME", "~/.cache/huggingface")
    hub = Path(os.getenv("HF_HUB_CACHE", f"{home}/hub")).expanduser()
    return sorted(hub.glob(f"models--{source.replace('/', '--')}/snapshots/*")) if "/" in source else []


@dataclass(frozen=True, kw_only=True)
class ClipFolder:
    """An opened ``CLIPModel`` folder: its two halves as functions, before features are normalised."""

    model: Any
    image: Callable[[Tensor], Tensor]  # normalised pixels (B, 3, h, w) to (B, D)
    text: Callable[[list[str]], Tensor]
    prepare: Preprocessing
    weights_hash: str


def load_clip_folder(folder: Path, device: str) -> ClipFolder:
    """Any ``CLIPModel`` folder with its tokenizer. fp32, nothing trainable."""
    from transformers import CLIPModel, CLIPTokenizer

    model = _load(CLIPModel, folder, device)
    # transformers 5 makes an empty tokenizer where there are no files, and every text would read the same
    if not any(all((folder / f).is_file() for f in files) for files in TOKENIZER_FILES):
        raise LikenessError(
            f"The CLIP model in {folder} has no tokenizer",
            expected="tokenizer.json, or vocab.json and merges.txt, beside config.json",
        )
    tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)

    def texts(batch: list[str]) -> Tensor:
        length = model.config.text_config.max_position_embeddings
        if max(len(ids) for ids in tokenizer(batch, verbose=False)["input_ids"]) > length:
            log.warning("CLIP reads %d tokens: the end of a longer prompt is not scored", length)
        tokens = tokenizer(batch, padding=True, truncation=True, max_length=length, return_tensors="pt")
        return _pooled(
            model.get_text_features(
                input_ids=tokens["input_ids"].to(device), attention_mask=tokens["attention_mask"].to(device)
            )
        )

    return ClipFolder(
        model=model,
        image=lambda x_B3HW: _pooled(model.get_image_features(pixel_values=x_B3HW)),
        text=texts,
        prepare=_resized(CLIP_PREPROCESSING, model.config.vision_config.image_size),
        weights_hash=_weights_hash(folder),
    )


def clip_from_folder(folder: Path, *, id: str = "", device: str = "cpu") -> TextImageEncoder:
    """Any ``CLIPModel`` folder with its tokenizer, as text and image encoder. fp32."""
    clip = load_clip_folder(folder, device)
    return _TextImage(
        id=id or folder.name,
        label="CLIP",
        weights_hash=clip.weights_hash,
        prepare=clip.prepare,
        image=clip.image,
        text=clip.text,
        device=device,
    )


def dino_from_folder(folder: Path, *, id: str = "", device: str = "cpu") -> ImageEncoder:
    """A ``ViTModel`` folder: the CLS state after the final layer norm, without the pooler. fp32."""
    from transformers import ViTModel

    model = _load(ViTModel, folder, device, add_pooling_layer=False)
    return _Image(
        id=id or folder.name,
        label="DINO",
        weights_hash=_weights_hash(folder),
        prepare=_resized(DINO_PREPROCESSING, model.config.image_size),
        image=lambda x_B3HW: model(pixel_values=x_B3HW).last_hidden_state[:, 0],
        device=device,
    )


def clip_from_open_clip(source: str, *, device: str = "cpu") -> TextImageEncoder:
    """``"open_clip:ARCHITECTURE=weights.safetensors"``, for architectures with CLIP's own tokenizer. fp32."""
    library = require("open_clip", purpose="scoring with an open_clip model", install="open_clip_torch")
    from safetensors.torch import load_file

    architecture, _, file = source.removeprefix("open_clip:").partition("=")
    path, config = Path(file).expanduser(), library.get_model_config(architecture)
    plain = config is not None and "hf_model_name" not in config["text_cfg"]
    if not plain or path.suffix != ".safetensors" or not path.is_file():
        raise LikenessError(
            f"{source!r} does not name an open_clip model that can be opened",
            expected="open_clip:ARCHITECTURE=FILE with a known architecture that uses CLIP's own tokenizer, "
            "such as ViT-B-32, and its weights on this machine as .safetensors",
        )
    model = library.create_model(architecture, load_weights=False).eval().requires_grad_(False)
    model.load_state_dict(load_file(path))
    model.to(device)
    tokenize = library.get_tokenizer(architecture)
    return _TextImage(
        id=f"open_clip:{architecture}",
        label="CLIP",
        weights_hash=hash_file(path),
        prepare=_resized(CLIP_PREPROCESSING, config["vision_cfg"]["image_size"]),
        image=model.encode_image,
        text=lambda batch: model.encode_text(tokenize(batch).to(device)),
        device=device,
    )


def _open_toybox(device: str) -> Encoders:
    """Toybox's CLIP and its encoder in DINO's role, under their own names."""
    from ..backbones.toybox import models, world

    prepare = Preprocessing(resize=world.SIZE_PX, crop=world.SIZE_PX)
    clip = models.load_clip().requires_grad_(False).to(device)
    identity = models.load_identity().requires_grad_(False).to(device)
    return Encoders(
        clip=_TextImage(
            id="toybox-clip",
            label="Toybox CLIP",
            weights_hash=_weights_hash(models.weights_dir() / "clip"),
            prepare=prepare,
            image=lambda x_B3HW: F.normalize(clip.model.visual_projection(clip.image_states(x_B3HW)), dim=-1),
            text=clip.encode_text,
            device=device,
        ),
        dino=_Image(
            id="toybox-identity",
            label="Toybox identity",
            weights_hash=_weights_hash(models.weights_dir() / "identity"),
            prepare=prepare,
            image=identity,
            device=device,
        ),
    )


def toybox_subject_encoder(device: str = "cpu") -> ImageEncoder:
    """The part of Toybox's encoder in DINO's role that sees the subject alone: for crops, whose place is no
    question. DINO sees little of it in a crop; in the whole feature it weighs as much as in a picture."""
    from ..backbones.toybox import models, world

    identity = models.load_identity().requires_grad_(False).to(device)
    return _Image(
        id="toybox-subject",
        label="Toybox subject",
        weights_hash=_weights_hash(models.weights_dir() / "identity"),
        prepare=Preprocessing(resize=world.SIZE_PX, crop=world.SIZE_PX),
        image=lambda x_B3HW: identity.parts(x_B3HW)[0],
        device=device,
    )


# --- the encoders -------------------------------------------------------------------------------------


class _Image:
    def __init__(
        self,
        *,
        id: str,
        label: str,
        weights_hash: str,
        prepare: Preprocessing,
        image: Callable[[Tensor], Tensor],
        device: str,
    ) -> None:
        self.id, self.label, self.weights_hash = id, label, weights_hash
        self.preprocessing = str(prepare)
        self._prepare, self._image, self._device = prepare, image, device

    @torch.no_grad()
    def encode(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        return _unit(self._image(self._prepare(images).to(self._device)))

    def embed(self, images_B3HW: Tensor) -> Tensor:
        features_BD = self._image(self._prepare.differentiable(images_B3HW.to(self._device)))
        return F.normalize(features_BD.float(), dim=-1)


class _TextImage(_Image):
    def __init__(self, *, text: Callable[[list[str]], Tensor], **image: Any) -> None:
        super().__init__(**image)
        self._text = text

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return _unit(self._text(list(texts)))


def _unit(features_BD: Tensor) -> Tensor:
    x_BD = features_BD.float().cpu()
    unit_BD: Tensor = x_BD / x_BD.norm(dim=-1, keepdim=True)
    return unit_BD


def _pooled(output: Any) -> Tensor:
    """transformers 5 wraps CLIP's projected features in a model output; transformers 4 returns the tensor."""
    feature: Tensor = output.pooler_output if hasattr(output, "pooler_output") else output
    return feature


def _resized(preprocessing: Preprocessing, size: int) -> Preprocessing:
    """The same recipe at another model's input size, resize and crop in proportion."""
    if size == preprocessing.crop:
        return preprocessing
    resize = round(preprocessing.resize * size / preprocessing.crop)
    return Preprocessing(resize=resize, crop=size, mean=preprocessing.mean, std=preprocessing.std)


def _weights_hash(folder: Path) -> str:
    """The file's own hash, so that it compares with the hub's; of all files where there are several."""
    hashes: dict[str, str] = {file.name: hash_file(file) for file in sorted(folder.glob("*.safetensors"))}
    return next(iter(hashes.values())) if len(hashes) == 1 else str(hash_json(hashes))


def _load(kind: Any, folder: Path, device: str, **options: Any) -> Any:
    """A transformers model from a local folder: safetensors only, fp32, every weight accounted for."""
    try:
        model, info = kind.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # transformers, safetensors and json each raise their own
        raise LikenessError(
            f"{folder} cannot be opened as a {kind.__name__}: {error}",
            expected="config.json and model.safetensors of such a model (pickled .bin files are not opened)",
        ) from error
    if info["missing_keys"] or info.get("mismatched_keys"):
        absent = sorted(map(str, info["missing_keys"] or info["mismatched_keys"]))
        raise LikenessError(
            f"{folder} lacks {len(absent)} weights of a {kind.__name__}, the first is {absent[0]}",
            expected="the complete model: text and image halves",
        )
    return model.eval().requires_grad_(False).to(device)
