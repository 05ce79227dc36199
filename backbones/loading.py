"""Opening a base model from files alone: a single-file checkpoint, a diffusers folder, or Toybox.

Nothing here can reach a network: configs come from the files or their shapes, modules are built empty and
filled tensor by tensor, and no library's own loader is called.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import LikenessError
from ..core.hashing import hash_file, hash_json
from ..core.tensorfile import read_metadata
from . import ldm, recognise
from .activations import with_lean_activations
from .base import BaseModel
from .inference import normal_tensors
from .schedule import SD_SCHEDULER, Schedule, schedule_from_config
from .sd import SDBackbone
from .tokens import ClipTokens, clip_tokens, tokens_from_folder

logger = logging.getLogger(__name__)

TOYBOX = Path(__file__).parent / "toybox" / "weights"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SD1_HEADS = 8  # CompVis/stable-diffusion v1-inference.yaml; SD 2.x has heads of 64 channels
_SD2_PAD = "!"  # open_clip pads with id 0, which is this sign
# Diffusers' first names of a VAE's attention layers, which the official SD 1.x folders still have.
_OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@dataclass(frozen=True)
class Parts:
    """What a model is made of, before it is placed on a device."""

    family: str
    unet: nn.Module
    vae: nn.Module
    text_encoder: nn.Module
    tokens: ClipTokens
    schedule: Schedule
    image_size: int


@normal_tensors
def load_backbone(base: BaseModel) -> SDBackbone:
    """Open ``base.source`` and place it. Raises LikenessError for what is not an SD 1.x or 2.x model."""
    device, dtype = _device(base), _dtype(base)
    path = source_path(base)
    parts = _read_folder(path, dtype) if path.is_dir() else _read_single_file(path, dtype)
    unet = parts.unet.to(device)
    resting = torch.device("cpu") if base.offload else device
    vae, text_encoder = parts.vae.to(resting), parts.text_encoder.to(resting)
    if base.channels_last:
        unet, vae = unet.to(memory_format=torch.channels_last), vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if base.gradient_checkpointing:
        unet.train()  # older diffusers checkpoint in training mode only; the UNet has no dropout
        unet.enable_gradient_checkpointing()  # type: ignore[operator]
    if base.compile:
        unet.compile()
    return SDBackbone(
        base=base,
        family="toybox" if base.source == "toybox" else parts.family,
        content_hash=content_hash(base),
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokens=parts.tokens,
        schedule=parts.schedule,
        image_size=parts.image_size,
        device=device,
        dtype=dtype,
    )


def source_path(base: BaseModel) -> Path:
    """The file or folder behind ``base.source``. Raises LikenessError when there is none."""
    if base.source == "toybox":
        if not (TOYBOX / "model_index.json").is_file():
            raise LikenessError(
                "Toybox's weights are not in this installation",
                expected=f"a diffusers folder in {TOYBOX}",
                fix="Install the package again, or train them with: likeness toybox train",
            )
        return TOYBOX
    path = Path(base.source).expanduser()
    if not path.exists():
        raise LikenessError(
            f"There is no file or folder {path}",
            expected='a .safetensors checkpoint, a diffusers folder, or "toybox"',
        )
    return path


def source_files(base: BaseModel) -> list[Path]:
    """The files that opening ``base`` reads, in a fixed order."""
    path = source_path(base)
    if path.is_file():
        return [path]
    parts = ("unet", "vae", "text_encoder")
    weights = [file for part in parts for file in _weight_files(path / part)]
    configs = [path / part / "config.json" for part in parts]
    scheduler = path / "scheduler" / "scheduler_config.json"
    return [*weights, *configs, scheduler, *sorted((path / "tokenizer").glob("*"))]


def content_hash(base: BaseModel) -> str:
    """Of the files' contents and their names inside the folder; the folder's place does not matter."""
    path = source_path(base)
    if path.is_file():
        digest: str = hash_file(path)
    else:
        files = [file for file in source_files(base) if file.is_file()]
        digest = hash_json({file.relative_to(path).as_posix(): hash_file(file) for file in files})
    return digest


# --- device and precision --------------------------------------------------------------------------


def _device(base: BaseModel) -> torch.device:
    name = base.device
    if name == "auto":
        mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise LikenessError(
            f"The device {name!r} cannot be used ({str(error).splitlines()[0]})",
            expected="auto, cpu, cuda, cuda:0 or mps",
        ) from error
    return device


def _dtype(base: BaseModel) -> torch.dtype:
    """ "auto" is half precision where the device is fast at it: bf16, or fp16 before NVIDIA's Ampere."""
    if base.dtype in _DTYPES:
        return _DTYPES[base.dtype]
    if _device(base).type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16


# --- weights into modules ----------------------------------------------------------------------------


Reader = Callable[[str], Tensor]


def _fill(
    what: str,
    make: Callable[[], nn.Module],
    shapes: ldm.Shapes,
    name_in_file: Callable[[str], str | None],
    read: Reader,
    dtype: torch.dtype,
) -> nn.Module:
    """Build a module without memory, then read its tensors one at a time, each in its final precision."""
    with torch.device("meta"):
        module = make()
    wanted = {name: tensor.shape for name, tensor in module.state_dict().items()}
    stored = {name: name_in_file(name) for name in wanted}
    missing = [name for name, key in stored.items() if key is None or key not in shapes]
    if missing:
        raise LikenessError(
            f"{what} lacks {len(missing)} of {len(wanted)} tensors, the first is {missing[0]}",
            expected="a complete model",
            fix="Copy or download it again",
        )
    tensors = {}
    for name, key in stored.items():
        assert key is not None
        tensor = read(key)
        if tensor.numel() != wanted[name].numel():
            raise LikenessError(
                f"{what}: {key} has the shape {tuple(tensor.shape)}", expected=str(tuple(wanted[name]))
            )
        tensors[name] = tensor.reshape(wanted[name]).to(dtype)  # 1x1 convolutions become linear layers
    module.load_state_dict(tensors, assign=True)
    _rebuild_buffers(module)
    return module.requires_grad_(False).eval()


def _rebuild_buffers(module: nn.Module) -> None:
    """Buffers that no file stores: CLIP's position numbers are the only ones."""
    for path, buffer in list(module.named_buffers()):
        if buffer.is_meta:
            owner, _, name = path.rpartition(".")
            assert name == "position_ids", path
            numbers = torch.arange(buffer.shape[-1]).expand(1, -1)
            module.get_submodule(owner).register_buffer(name, numbers, persistent=False)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[ldm.Shapes, Reader]]:
    """Shapes of all tensors of a file, and a reader of one. Raises LikenessError for a torn file."""
    from safetensors import safe_open

    read_metadata(path)
    with safe_open(path, framework="pt", device="cpu") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        yield shapes, lambda key: file.get_tensor(key).clone()  # not a view of the file, which may go away


def _unet(config: Mapping[str, Any]) -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_config(dict(config))  # type: ignore[no-any-return,unused-ignore]


def _vae(config: Mapping[str, Any]) -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_config(dict(config))  # type: ignore[no-any-return,unused-ignore]


def _text_encoder(config: Mapping[str, Any]) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    return with_lean_activations(CLIPTextModel(CLIPTextConfig(**config, attn_implementation="sdpa")))


# --- single file -------------------------------------------------------------------------------------


def _read_single_file(path: Path, dtype: torch.dtype) -> Parts:
    recognise.refuse_pickle(path)
    metadata = read_metadata(path)
    with _opened(path) as (shapes, read):
        recognise.check_keys(path, shapes)
        sd2 = f"{ldm.OPEN_CLIP}token_embedding.weight" in shapes
        try:
            unet_config = ldm.unet_config(shapes, heads=None if sd2 else _SD1_HEADS)
            vae_config, clip_config = ldm.vae_config(shapes), ldm.clip_config(shapes)
        except KeyError as error:
            raise LikenessError(
                f"{path} lacks the tensor {error.args[0]}", fix="Copy or download it again"
            ) from error
        recognise.check_unet(path, unet_config["in_channels"], vae_config["latent_channels"])
        prediction = _prediction(sd2, metadata, shapes, read)
        image_size = 768 if sd2 and prediction == "v_prediction" else 512
        unet = _fill(
            f"The UNet of {path}",
            lambda: _unet({**unet_config, "sample_size": image_size // 8}),
            shapes,
            _prefixed(ldm.UNET, ldm.unet_table(unet_config)),
            read,
            dtype,
        )
        vae = _fill(
            f"The VAE of {path}",
            lambda: _vae(vae_config),
            shapes,
            _prefixed(ldm.VAE, ldm.vae_table(vae_config)),
            read,
            torch.float32,
        )
        text_encoder = _read_clip(path, clip_config, shapes, read, sd2)
    tokens = clip_tokens(pad=_SD2_PAD) if sd2 else clip_tokens()
    if clip_config["vocab_size"] != tokens.num_ids:
        raise LikenessError(
            f"The text encoder of {path} knows {clip_config['vocab_size']} tokens",
            expected=f"CLIP's {tokens.num_ids}",
        )
    schedule = schedule_from_config({**SD_SCHEDULER, "prediction_type": prediction})
    return Parts("sd2" if sd2 else "sd1", unet, vae, text_encoder, tokens, schedule, image_size)


def _prefixed(prefix: str, table: Mapping[str, str]) -> Callable[[str], str | None]:
    def name_in_file(name: str) -> str | None:
        found = ldm.rename(name, table)
        return None if found is None else prefix + found

    return name_in_file


def _read_clip(
    path: Path, config: Mapping[str, Any], shapes: ldm.Shapes, read: Reader, sd2: bool
) -> nn.Module:
    name_in_file, shapes, read = _open_clip(config, shapes, read) if sd2 else _clip(shapes, read)
    return _fill(
        f"The text encoder of {path}",
        lambda: _text_encoder(config),
        shapes,
        lambda name: name_in_file(name.removeprefix("text_model.")),
        read,
        torch.float32,
    )


Source = tuple[Callable[[str], str | None], ldm.Shapes, Reader]


def _clip(shapes: ldm.Shapes, read: Reader) -> Source:
    prefix = ldm.clip_prefix(shapes)
    return (lambda name: prefix + name), shapes, read


def _open_clip(config: Mapping[str, Any], shapes: ldm.Shapes, read: Reader) -> Source:
    """Open_clip keeps q, k and v of a layer in one tensor; each is a third of its rows."""
    table = _prefixed(ldm.OPEN_CLIP, ldm.open_clip_table(config["num_hidden_layers"]))
    thirds: dict[str, tuple[str, int]] = {}
    for n in range(config["num_hidden_layers"]):
        for side in ("weight", "bias"):
            joined = f"{ldm.OPEN_CLIP}transformer.resblocks.{n}.attn.in_proj_{side}"
            for third, name in enumerate(("q_proj", "k_proj", "v_proj")):
                if joined in shapes:
                    thirds[f"encoder.layers.{n}.self_attn.{name}.{side}"] = joined, third
    position = f"{ldm.OPEN_CLIP}positional_embedding"

    def name_in_file(name: str) -> str | None:
        if name in thirds:
            return name
        return position if name == "embeddings.position_embedding.weight" else table(name)

    def read_third(key: str) -> Tensor:
        if key not in thirds:
            return read(key)
        joined, third = thirds[key]
        return read(joined).chunk(3)[third]

    return name_in_file, {**shapes, **dict.fromkeys(thirds, ())}, read_third


def _prediction(sd2: bool, metadata: Mapping[str, str], shapes: ldm.Shapes, read: Reader) -> str:
    """What an SD checkpoint predicts: its metadata, a marker tensor, or for SD 2.x its weights, say so.

    The last is ComfyUI's test (comfy/supported_models.py, SD20): v models have a wider first norm bias.
    """
    stated = metadata.get("modelspec.prediction_type", "")
    if stated in ("v", "epsilon"):
        return "v_prediction" if stated == "v" else "epsilon"
    if "v_pred" in shapes:
        return "v_prediction"
    bias = f"{ldm.UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
    wide = sd2 and bias in shapes and float(read(bias).float().std(unbiased=False)) > 0.09
    return "v_prediction" if wide else "epsilon"


# --- diffusers folder --------------------------------------------------------------------------------


def _read_folder(folder: Path, dtype: torch.dtype) -> Parts:
    index = _json(folder / "model_index.json")
    recognise.check_index(folder, index)
    needed = ("unet/config.json", "vae/config.json", "text_encoder/config.json", "tokenizer")
    missing = [n for n in (*needed, "scheduler/scheduler_config.json") if not (folder / n).exists()]
    if missing:
        raise LikenessError(
            f"The folder {folder} lacks {', '.join(missing)}", expected="a complete diffusers pipeline"
        )
    unet_config, vae_config = _json(folder / "unet/config.json"), _json(folder / "vae/config.json")
    recognise.check_unet(folder, unet_config.get("in_channels", 4), vae_config.get("latent_channels", 4))
    clip_config = _json(folder / "text_encoder/config.json")
    tokens = tokens_from_folder(folder / "tokenizer")
    schedule = schedule_from_config(_json(folder / "scheduler/scheduler_config.json"))
    unet = _read_part(folder / "unet", lambda: _unet(unet_config), dtype)
    vae = _read_part(folder / "vae", lambda: _vae(vae_config), torch.float32)
    text_encoder = _read_part(folder / "text_encoder", lambda: _text_encoder(clip_config), torch.float32)
    cell = 2 ** (len(vae_config["block_out_channels"]) - 1)
    image_size = int(unet_config.get("sample_size", 64)) * cell
    family = "sd2" if unet_config.get("use_linear_projection") else "sd1"
    return Parts(family, unet, vae, text_encoder, tokens, schedule, image_size)


def _read_part(folder: Path, make: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    files = _weight_files(folder)
    if len(files) != 1:
        pickles = sorted(folder.glob("*.bin"))
        if pickles:
            recognise.refuse_pickle(pickles[0])
        found = ", ".join(file.name for file in files) or "none"
        raise LikenessError(
            f"The folder {folder} has {len(files)} weight files ({found})",
            expected="one .safetensors file, not split",
        )
    with _opened(files[0]) as (shapes, read):
        return _fill(str(files[0]), make, shapes, lambda name: _stored_name(name, shapes), read, dtype)


def _stored_name(name: str, shapes: ldm.Shapes) -> str | None:
    """``name`` as the file has it: files outlive the names of the libraries that wrote them."""
    bare = name.removeprefix("text_model.")
    old = name
    for new_name, old_name in _OLD_NAMES.items():
        old = old.replace(f".{new_name}.", f".{old_name}.")
    return next((n for n in (name, bare, f"text_model.{bare}", old) if n in shapes), None)


def _weight_files(folder: Path) -> list[Path]:
    """A part's weights: those of full precision where there are several variants."""
    for pattern in ("diffusion_pytorch_model.safetensors", "model.safetensors", "*.safetensors"):
        if files := sorted(folder.glob(pattern)):
            return files
    return []


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LikenessError(
            f"{path} cannot be read as JSON ({error})", expected="a complete diffusers folder"
        ) from error
    if not isinstance(data, dict):
        raise LikenessError(f"{path} holds no settings", expected="a JSON object")
    return data
