"""Run by image_reward_parity.py under the reference's own interpreter: scores by the authors' package.

    python image_reward_reference.py FOLDER

Only what image-reward 1.5 needs is imported. Weights are drawn at random, seeded, and saved for the other
side; nothing is downloaded: the tokenizer and configuration are written here.
"""

import json
import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import BertTokenizer

folder = Path(sys.argv[1])
_from_pretrained = BertTokenizer.from_pretrained
BertTokenizer.from_pretrained = classmethod(lambda cls, *a, **k: BertTokenizer(str(folder / "bert" / "vocab.txt")))

from ImageReward.ImageReward import ImageReward  # noqa: E402

med_config = {  # med_config.json of the release; encoder_width is set to the vision tower's by its code
    "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
    "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 12,
    "num_hidden_layers": 12, "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": 30524,
    "encoder_width": 768, "add_cross_attention": True,
}  # fmt: skip
(folder / "med_config.json").write_text(json.dumps(med_config))
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
model.eval()
save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, str(folder / "weights.safetensors"))
prompts = json.loads((folder / "prompts.json").read_text())
pictures = sorted((folder / "pairs").glob("*.png"))
scores = []
with torch.no_grad():
    for prompt, path in zip(prompts, pictures):
        scores.append(float(model.score(prompt, Image.open(path))))
(folder / "scores.json").write_text(json.dumps(scores))
