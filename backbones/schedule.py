"""The noise schedule of a diffusion model: what ``add_noise``, ``target``, ``snr`` and DDIM share.

    z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps          (Ho et al. 2020, arXiv:2006.11239, eq. 4)
    v_t = sqrt(abar_t) eps - sqrt(1 - abar_t) z_0          (Salimans & Ho 2022, arXiv:2202.00512, app. D)

Everything is fp32 and pure; numbers equal diffusers' DDIMScheduler for the same scheduler_config.json.
"""
# Shapes: B batch, C latent channels, H W latent height and width, T training timesteps.

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import LikenessError
from .base import Prediction

SD_SCHEDULER: Mapping[str, Any] = {  # CompVis/stable-diffusion, configs/stable-diffusion/v1-inference.yaml
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "prediction_type": "epsilon",
}


@dataclass(frozen=True)
class Schedule:
    """Cumulative signal levels and the grid that DDIM walks.

    ``abar`` (T,) fp32 on the CPU; ``final_abar`` is the level behind the last step. ``spacing`` and
    ``offset`` place the grid as diffusers does (Lin et al. 2023, arXiv:2305.08891, table 2).
    """

    abar: Tensor
    final_abar: float
    prediction: Prediction
    spacing: str = "leading"
    offset: int = 0

    @property
    def num_timesteps(self) -> int:
        return len(self.abar)

    def _levels(self, t_B: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar) and sqrt(1 - abar) at ``t_B``, shaped to multiply ``like``."""
        abar = self.abar.to(like.device)[t_B.to(like.device, torch.long)]
        abar = abar.view(-1, *[1] * (like.ndim - 1))
        return abar.sqrt(), (1 - abar).sqrt()

    def add_noise(self, z0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """``z_t``, fp32."""
        signal, sigma = self._levels(t_B, z0_BCHW)
        return signal * z0_BCHW.float() + sigma * noise_BCHW.float()

    def target(self, z0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """What the network should say at ``z_t``: the noise, or v. fp32."""
        if self.prediction == "epsilon":
            return noise_BCHW.float()
        signal, sigma = self._levels(t_B, z0_BCHW)
        return signal * noise_BCHW.float() - sigma * z0_BCHW.float()

    def snr(self, t_B: Tensor) -> Tensor:
        """``abar / (1 - abar)``, (B,) fp32 on ``t_B``'s device."""
        abar_B = self.abar.to(t_B.device)[t_B.long()]
        return abar_B / (1 - abar_B)

    def timesteps(self, steps: int) -> list[int]:
        """The descending grid of ``steps`` timesteps. Raises LikenessError outside 1 .. T."""
        if not 1 <= steps <= self.num_timesteps:
            raise LikenessError(
                f"{steps} sampling steps were asked for", expected=f"1 to {self.num_timesteps} steps"
            )
        grid = _SPACINGS[self.spacing](self.num_timesteps, steps, self.offset)
        return [min(t, self.num_timesteps - 1) for t in grid]

    def clean_and_noise(self, z_BCHW: Tensor, out_BCHW: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """The network's output at ``z_t`` read as an estimate of ``z_0`` and of the noise."""
        abar = float(self.abar[t])
        signal, sigma = math.sqrt(abar), math.sqrt(1 - abar)
        if self.prediction == "v_prediction":
            return signal * z_BCHW - sigma * out_BCHW, signal * out_BCHW + sigma * z_BCHW
        return (z_BCHW - sigma * out_BCHW) / signal, out_BCHW

    def ddim_step(
        self,
        z_BCHW: Tensor,
        out_BCHW: Tensor,
        t: int,
        steps: int,
        *,
        eta: float = 0.0,
        noise_BCHW: Tensor | None = None,
    ) -> Tensor:
        """``z`` one grid step earlier (Song et al. 2020, arXiv:2010.02502, eq. 12 and 16). fp32.

        ``noise_BCHW`` is read only when ``eta > 0``. Differs: clean estimates are never clipped, since
        latents have no bounds; diffusers clips when a config leaves ``clip_sample`` unset.
        """
        z0, noise_hat = self.clean_and_noise(z_BCHW.float(), out_BCHW.float(), t)
        before = t - self.num_timesteps // steps
        abar = float(self.abar[t])
        abar_before = float(self.abar[before]) if before >= 0 else self.final_abar
        variance = (1 - abar_before) / (1 - abar) * (1 - abar / abar_before)
        sigma = eta * math.sqrt(max(variance, 0.0))
        towards_z = math.sqrt(max(1 - abar_before - sigma**2, 0.0))
        z = math.sqrt(abar_before) * z0 + towards_z * noise_hat
        if sigma > 0 and noise_BCHW is not None:
            z = z + sigma * noise_BCHW.to(z.device, torch.float32)
        return z

    def estimates(self, z_BCHW: Tensor, out_BCHW: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """``clean_and_noise`` where every row has its own timestep."""
        signal, sigma = self._levels(t_B, z_BCHW)
        if self.prediction == "v_prediction":
            return signal * z_BCHW - sigma * out_BCHW, signal * out_BCHW + sigma * z_BCHW
        return (z_BCHW - sigma * out_BCHW) / signal, out_BCHW

    def transition(
        self, z_BCHW: Tensor, out_BCHW: Tensor, t_B: Tensor, steps: int, *, eta: float
    ) -> tuple[Tensor, Tensor]:
        """Mean (B, C, H, W) and std (B,) of the gaussian that ``ddim_step`` draws from. fp32.

        Each row has its own timestep of the grid of ``steps``; gradients flow through ``out_BCHW``. Where
        the grid ends at a clean picture the std is 0: that step is no draw.
        """
        z = z_BCHW.float()
        z0, noise_hat = self.estimates(z, out_BCHW.float(), t_B)
        before_B = t_B.to(z.device, torch.long) - self.num_timesteps // steps
        abar = self.abar.to(z.device)
        earlier_B = torch.where(before_B >= 0, abar[before_B.clamp(min=0)], self.final_abar)
        abar_B = abar[t_B.to(z.device, torch.long)]
        # abar' - abar, not 1 - abar / abar': in fp32 the quotient would lose the last step's variance
        variance_B = (1 - earlier_B) / (1 - abar_B) * (earlier_B - abar_B) / earlier_B
        std_B = eta * variance_B.clamp(min=0).sqrt()
        earlier, std = (v.view(-1, *[1] * (z.ndim - 1)) for v in (earlier_B, std_B))
        towards_z = (1 - earlier - std.square()).clamp(min=0).sqrt()
        return earlier.sqrt() * z0 + towards_z * noise_hat, std_B


def schedule_from_config(config: Mapping[str, Any]) -> Schedule:
    """Read a diffusers ``scheduler_config.json``. Raises LikenessError for what no SD model uses."""
    settings = {**_DIFFUSERS_DEFAULTS, **config}
    for name, table in (
        ("beta_schedule", _BETAS),
        ("prediction_type", ("epsilon", "v_prediction")),
        ("timestep_spacing", _SPACINGS),
    ):
        if settings[name] not in table:
            raise LikenessError(
                f"The scheduler config says {name}={settings[name]!r}", expected=" or ".join(sorted(table))
            )
    abar = torch.cumprod(1 - _betas(settings), dim=0)
    if settings["rescale_betas_zero_snr"]:
        abar = _zero_terminal_snr(abar)
    return Schedule(
        abar=abar,
        final_abar=1.0 if settings["set_alpha_to_one"] else float(abar[0]),
        prediction=settings["prediction_type"],
        spacing=settings["timestep_spacing"],
        offset=int(settings["steps_offset"]),
    )


_DIFFUSERS_DEFAULTS: Mapping[str, Any] = {  # diffusers' own defaults for keys that a config leaves out
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "num_train_timesteps": 1000,
    "steps_offset": 0,
    "set_alpha_to_one": True,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "rescale_betas_zero_snr": False,
    "trained_betas": None,
}


def _betas(settings: Mapping[str, Any]) -> Tensor:
    if settings["trained_betas"] is not None:
        return torch.tensor(settings["trained_betas"], dtype=torch.float32)
    make = _BETAS[settings["beta_schedule"]]
    return make(settings["beta_start"], settings["beta_end"], settings["num_train_timesteps"])


def _cosine_betas(start: float, end: float, num: int) -> Tensor:
    """Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 17, capped at 0.999."""
    level = [math.cos((i / num + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(num + 1)]
    return torch.tensor([min(1 - level[i + 1] / level[i], 0.999) for i in range(num)])


_BETAS: Mapping[str, Callable[[float, float, int], Tensor]] = {
    "linear": lambda start, end, num: torch.linspace(start, end, num, dtype=torch.float32),
    "scaled_linear": lambda start, end, num: torch.linspace(start**0.5, end**0.5, num) ** 2,
    "squaredcos_cap_v2": _cosine_betas,
}


def _zero_terminal_snr(abar: Tensor) -> Tensor:
    """Shift and scale sqrt(abar) so that the last timestep is pure noise (arXiv:2305.08891, alg. 1)."""
    root_T = abar.sqrt()
    first, last = root_T[0].clone(), root_T[-1].clone()
    return ((root_T - last) * first / (first - last)) ** 2


def _leading(num: int, steps: int, offset: int) -> list[int]:
    return [i * (num // steps) + offset for i in reversed(range(steps))]


def _trailing(num: int, steps: int, offset: int) -> list[int]:
    return [round(num - i * num / steps) - 1 for i in range(steps)]


def _linspace(num: int, steps: int, offset: int) -> list[int]:
    return torch.linspace(0, num - 1, steps, dtype=torch.float64).round().long().flip(0).tolist()


_SPACINGS: Mapping[str, Callable[[int, int, int], list[int]]] = {
    "leading": _leading,
    "trailing": _trailing,
    "linspace": _linspace,
}
