import torch
from likeness.core.checkpoint import checkpoint_path, load_checkpoint, newest_checkpoint, save_checkpoint


def test_a_checkpoint_comes_back(tmp_path):
    tensors = {"w": torch.randn(3, 4).t(), "step": torch.tensor(7)}
    path = checkpoint_path(tmp_path, 7)
    save_checkpoint(path, tensors, {"step": 7, "lr": 0.1})
    again, state = load_checkpoint(newest_checkpoint(tmp_path))
    assert state == {"step": 7, "lr": 0.1}
    assert all(torch.equal(again[k], v) for k, v in tensors.items())
    assert list(tmp_path.iterdir()) == [path]
