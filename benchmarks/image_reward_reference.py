"""Run by image_reward_parity.py under the reference's own interpreter: scores by the authors' package.

    python image_reward_reference.py FOLDER

Only what image-reward 1.5 needs is imported. Weights are drawn at random, seeded, and saved for the other
side; nothing is downloaded: the tokenizer and the configuration are written here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

MED_CONFIG = {  # med_config.json of the release; the code sets encoder_width to the vision tower's
    "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
    "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 12,
    "num_hidden_layers": 12, "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": 30524,
    "encoder_width": 768, "add_cross_attention": True,
}  # fmt: skip


def reference(folder: Path) -> Any:
    """The package's model with random weights."""
    import torch
    from transformers import BertTokenizer

    vocabulary = str(folder / "bert" / "vocab.txt")
    BertTokenizer.from_pretrained = classmethod(lambda cls, *a, **k: BertTokenizer(vocabulary))
    sys.modules["clip"] = ModuleType("clip")  # for its other scorers; not on a package index
    from ImageReward.ImageReward import ImageReward

    (folder / "med_config.json").write_text(json.dumps(MED_CONFIG))
    torch.manual_seed(0)
    model = ImageReward(device="cpu", med_config=str(folder / "med_config.json"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # ones and zeros would hide a swapped key
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif name.startswith("mlp."):
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[1] ** 0.5)
            else:
                parameter.mul_(2.0)
    return model.eval()


def main(folder: Path) -> None:
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    model = reference(folder)
    state = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    save_file(state, str(folder / "weights.safetensors"))
    prompts = json.loads((folder / "prompts.json").read_text())
    pictures = sorted((folder / "pairs").glob("*.png"))
    with torch.no_grad():
        pairs = zip(prompts, pictures, strict=True)
        scores = [float(model.score(prompt, Image.open(path))) for prompt, path in pairs]
    (folder / "scores.json").write_text(json.dumps(scores))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
