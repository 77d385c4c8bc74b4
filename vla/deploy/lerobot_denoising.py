"""The samplers of LeRobot's policies as tables: one row of constants a denoising step.

Every update of DDPM (Ho et al. 2020, arXiv:2006.11239), DDIM (Song et al. 2021, arXiv:2010.02502)
and Euler integration of a flow is, for a sample x, the network's output o and fresh noise z,

    x0 = clip(a x + b o),    x <- c x0 + d x + e o + f z

so the graph holds the update once, and a, ..., f are its input.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

from vla_runtime.exported.lerobot_settings import Denoising

from vla.deploy.onnx_graphs import ExportError

Row = tuple[float, float, float, float, float, float]


def flow_denoising(steps: int, shape: tuple[int, int]) -> Denoising:
    """Euler integration from noise at time 1 to actions at time 0."""
    times = tuple(1.0 - step / steps for step in range(steps))
    row: Row = (0.0, 0.0, 0.0, 1.0, -1.0 / steps, 0.0)
    return Denoising(times, (row,) * steps, shape, fresh_noise=False)


def diffusion_denoising(scheduler: Any, steps: int, shape: tuple[int, int]) -> Denoising:
    """The sampler of one of diffusers' schedulers.

    Args:
        scheduler: a DDPMScheduler or a DDIMScheduler.
        steps: denoising steps.
        shape: control steps and dimensions of a sample.

    Raises:
        ExportError: a setting that has no such table.
    """
    kind, config = type(scheduler).__name__, scheduler.config
    rows = {"DDPMScheduler": _ddpm_row, "DDIMScheduler": _ddim_row}
    if kind not in rows or config.prediction_type not in ("epsilon", "sample"):
        raise ExportError(
            f"the sampler {kind} with prediction_type {config.prediction_type!r} is not exported: "
            f"only {sorted(rows)} with 'epsilon' or 'sample'"
        )
    if config.thresholding:
        raise ExportError("a sampler with thresholding=True is not exported")
    scheduler.set_timesteps(steps)
    times = [int(time) for time in scheduler.timesteps]
    table = tuple(rows[kind](scheduler, time) for time in times)
    return Denoising(tuple(map(float, times)), table, shape, fresh_noise=kind == "DDPMScheduler")


def _clean_sample(scheduler: Any, kept: float) -> tuple[float, float]:
    """Constants a and b: x = sqrt(kept) x0 + sqrt(1 - kept) noise, solved for x0."""
    if scheduler.config.prediction_type == "sample":
        return 0.0, 1.0
    return 1 / sqrt(kept), -sqrt((1 - kept) / kept)


def _ddpm_row(scheduler: Any, time: int) -> Row:
    kept = float(scheduler.alphas_cumprod[time])
    before = scheduler.previous_timestep(time)
    left = float(scheduler.alphas_cumprod[before]) if before >= 0 else 1.0
    alpha = kept / left
    a, b = _clean_sample(scheduler, kept)
    # Equation 7 of Ho et al.: the mean of the posterior of the sample before.
    c = sqrt(left) * (1 - alpha) / (1 - kept)
    d = sqrt(alpha) * (1 - left) / (1 - kept)
    noise = float(scheduler._get_variance(time)) if time > 0 else 0.0
    return a, b, c, d, 0.0, sqrt(noise)


def _ddim_row(scheduler: Any, time: int) -> Row:
    kept = float(scheduler.alphas_cumprod[time])
    before = time - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    left = float(scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod)
    a, b = _clean_sample(scheduler, kept)
    # Equation 12 of Song et al. without noise; what the network takes for noise is not clipped.
    direction = sqrt(1 - left)
    if scheduler.config.prediction_type == "epsilon":
        return a, b, sqrt(left), 0.0, direction, 0.0
    scale = direction / sqrt(1 - kept)
    return a, b, sqrt(left), scale, -scale * sqrt(kept), 0.0
