"""A head start for a small convolutional decoder: it begins by knowing where in its 8 x 8 cells a pixel lies.

Nearest-neighbour upsampling followed by convolutions treats every pixel of a cell alike, so that a decoder
must first discover, from the zeros that pad the border, where it is; a small one spends its first thousand
steps on that. Here the weights begin with the discovery made: in a few reserved channels each convolution
of the 8 x 8 blocks pushes a step one column (row) further from the border, the steps add up to a ramp
u (i + 1), and after each upsampling the kernels

    ramp' = (ramp[x] + ramp[x - 1]) / 2          phase = (ramp[x] - ramp[x - 1]) / u   (1, 0, 1, 0, ...)

refine the ramp and read off which half of a cell a pixel is in. Training may change all of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_UNIT = 0.125
_BACK = ((1, 0), (0, 1))  # the tap one column to the left; one row up
_RAMPS, _PHASES = (8, 9), (10, 11)  # channels in the 8 x 8 blocks, by axis: column, row


@torch.no_grad()
def plant(decoder: nn.Module) -> None:
    """Write the position code into a diffusers ``Decoder`` of four blocks, 128 channels first, 32 groups."""
    resnets = [*decoder.mid_block.resnets, *decoder.up_blocks[0].resnets]
    _clear(decoder.conv_in, range(12))
    for axis in (0, 1):
        decoder.conv_in.bias[4 * axis] = 1.0
        decoder.conv_in.bias[_RAMPS[axis]] = _UNIT
    decoder.mid_block.attentions[0].to_out[0].bias[:12] = 0
    steps = torch.zeros(2, 4, 8)
    steps[:, 0] = 1.0
    for number, resnet in enumerate(resnets):
        _push_steps(resnet, number, steps)
    code = [*_RAMPS]
    for level, block in enumerate(decoder.up_blocks):
        code = _carry(block, code, level)


def _push_steps(resnet: nn.Module, number: int, steps: Tensor) -> None:
    """The step [i >= 2n] becomes [i >= 2n + 1] and [i >= 2n + 2]: both add to the ramp, the last goes on."""
    _clear(resnet.conv1, range(8))
    _clear(resnet.conv2, range(12))
    for axis, (dy, dx) in enumerate(_BACK):
        source, middle = 4 * axis + number, 4 * axis
        on = _switch(resnet.norm1, source, steps[axis], number)
        resnet.conv1.weight[middle, source, dy, dx] = 1 / on
        pushed = torch.zeros(4, 8)
        pushed[0, 2 * number + 1 :] = 1
        on = _switch(resnet.norm2, middle, pushed, 0)
        for ahead in ((dy, dx), (1, 1)):
            resnet.conv2.weight[_RAMPS[axis], middle, ahead[0], ahead[1]] = _UNIT / on
        if number < 3:
            resnet.conv2.weight[source + 1, middle, dy, dx] = 1 / on
            steps[axis, number + 1, 2 * number + 2 :] = 1


def _switch(norm: nn.GroupNorm, channel: int, group: Tensor, row: int) -> float:
    """Set a norm's weight and bias so that SiLU after it is 0 where the step is 0; what it is elsewhere."""
    normed = (group - group.mean()) / (group.var(unbiased=False) + norm.eps).sqrt()
    high = normed[row].max()
    low = normed[row].min() if group[row].min() < 1 else high - 2
    norm.weight[channel] = 12 / (high - low)
    norm.bias[channel] = 2 - norm.weight[channel] * high
    return float(F.silu(torch.tensor(2.0)))


def _carry(block: nn.Module, code: list[int], level: int) -> list[int]:
    """Take the code through a block's shortcut and upsampling; the new places of ramps and phases."""
    for resnet in block.resnets:
        if resnet.conv_shortcut is not None:
            _clear(resnet.conv_shortcut, range(len(code)))
            for place, source in enumerate(code):
                resnet.conv_shortcut.weight[place, source] = 1
            code = list(range(len(code)))
        if level:
            _clear(resnet.conv2, code)
    if not block.upsamplers:
        return code
    conv = block.upsamplers[0].conv
    fresh = [max(code) + 1, max(code) + 2]
    _clear(conv, code + fresh)
    for axis, (dy, dx) in enumerate(_BACK):
        conv.weight[code[axis], code[axis], 1, 1] = 0.5
        conv.weight[code[axis], code[axis], dy, dx] = 0.5
        conv.weight[fresh[axis], code[axis], 1, 1] = 2**level / _UNIT
        conv.weight[fresh[axis], code[axis], dy, dx] = -(2**level) / _UNIT
    for place in code[2:]:
        conv.weight[place, place, 1, 1] = 1
    return code + fresh


def _clear(conv: nn.Module, channels: object) -> None:
    conv.weight[list(channels)] = 0  # type: ignore[call-overload]
    conv.bias[list(channels)] = 0  # type: ignore[call-overload]
