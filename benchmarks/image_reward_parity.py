"""ImageReward: our transcription onto transformers against the authors' package, at the full architecture.

The package (image-reward 1.5) pins timm 0.6.13 and breaks on current transformers, so it runs in an
environment of its own, which this module builds in a scratch folder. Both get the same random weights
(seeded, with the names of the released file), the same tokenizer, and 64 picture-text pairs; their scores
must agree. Some minutes and 8 GB of memory; it needs a package index, and no model is downloaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..core.errors import LikenessError
from . import bar

PAIRS, QUICK_PAIRS = 64, 4
TOLERANCE = 1e-4
PACKAGES = (
    "image-reward==1.5", "timm==0.6.13", "transformers==4.27.4", "huggingface_hub==0.14.1",
    "fairscale==0.4.13", "torch==2.2.2", "torchvision==0.17.2", "numpy<2", "ftfy", "regex", "safetensors",
    "datasets==2.14.6", "pyarrow==14.0.2", "setuptools<70", "diffusers==0.16.1", "accelerate==0.16.0",
)  # fmt: skip
CHILD = Path(__file__).with_name("image_reward_reference.py")


def run(quick: bool) -> dict[str, Any]:
    count = QUICK_PAIRS if quick else PAIRS
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        vocabulary = write_inputs(scratch, count)
        python = environment(scratch / "environment")
        theirs = reference_scores(python, scratch)
        ours, unused = our_scores(scratch, vocabulary)
    worst = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    spread = max(theirs) - min(theirs)
    return {
        "numbers": {
            "pairs": count,
            "largest difference": worst,
            "spread of the scores": spread,
            "tensors of the file that are not used": unused,
            "reference": "image-reward 1.5, timm 0.6.13, transformers 4.27.4",
        },
        "bars": [
            bar("largest difference of scores", value=worst, op="<=", bar=TOLERANCE),
            bar("spread of the scores over it", value=spread / max(worst, 1e-12), op=">=", bar=10.0),
        ],
        "seeds": [0],
    }


def write_inputs(folder: Path, count: int) -> Path:
    """Pictures and prompts in ``pairs/``, and a WordPiece vocabulary of bert's size."""
    import numpy as np
    from PIL import Image

    from ..backbones.toybox import captions, world

    dice = np.random.default_rng(0)
    (folder / "pairs").mkdir()
    prompts = [captions.caption(world.sample_picture(n, split="eval")) for n in range(count)]
    for n in range(count):
        width, height = (int(edge) for edge in dice.integers(200, 400, size=2))
        small = dice.integers(0, 256, size=(9, 7, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(folder / "pairs" / f"{n:03d}.png")
    (folder / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")
    return write_vocabulary(folder / "bert" / "vocab.txt", prompts)


def write_vocabulary(path: Path, prompts: list[str]) -> Path:
    """30,522 entries, the special ones where bert-base-uncased has them, every word of the prompts whole."""
    words = sorted({word for prompt in prompts for word in prompt.lower().split()})
    entries = [f"[unused{n}]" for n in range(30522)]
    entries[0] = "[PAD]"
    entries[100:104] = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    entries[1000 : 1000 + len(words)] = words
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(entries), encoding="utf-8")
    return path


def environment(folder: Path) -> Path:
    """The reference's own interpreter; LikenessError where it cannot be made."""
    python = folder / "bin" / "python"
    version = os.environ.get("REFERENCE_PYTHON", "3.11")  # the newest that the old packages have wheels for
    commands = (
        ["uv", "venv", "--quiet", "--python", version, str(folder)],
        ["uv", "pip", "install", "--quiet", "--python", str(python), "--no-deps", PACKAGES[0]],
        ["uv", "pip", "install", "--quiet", "--python", str(python), *PACKAGES[1:]],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise LikenessError(
                f"The reference's environment could not be made: {done.stderr.strip()[-600:]}",
                expected=f"uv, Python {version} and a package index",
            )
    return python


def reference_scores(python: Path, folder: Path) -> list[float]:
    """Scores by the authors' code, which also writes its random weights to ``weights.safetensors``."""
    done = subprocess.run([python, CHILD, folder], capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise LikenessError(f"The reference failed: {done.stderr.strip()[-1500:]}")
    scores: list[float] = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    return scores


def our_scores(folder: Path, vocabulary: Path) -> tuple[list[float], dict[str, str]]:
    from PIL import Image
    from safetensors.torch import load_file

    from ..scoring.encoders import to_tensor
    from ..scoring.rewards import image_reward as ir
    from ..scoring.rewards import score_stream

    net = ir.ImageRewardNet()
    found = ir.load_weights(net, load_file(folder / "weights.safetensors"))
    reward = ir.reward_of(net, ir.tokenizer(vocabulary), weights_hash="", device="cpu", batch_size=1)
    prompts = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    pictures = (to_tensor(Image.open(path)) for path in sorted((folder / "pairs").glob("*.png")))
    scores = list(score_stream(reward, zip(pictures, prompts, strict=True), batch_size=1))
    return scores, dict(found.unused)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(quick="--quick" in sys.argv), indent=2) + "\n")
