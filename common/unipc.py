"""UniPC, the real size's sampler: it needs fewer steps than Euler's. `tiny` does not use it."""

import torch
from diffusers import UniPCMultistepScheduler


def unipc(velocity, x: torch.Tensor, steps: int, shift: float, progress=list) -> torch.Tensor:
    """Integrate dx / dt = velocity(x, t) from noise x at t = 1 to a clip at t = 0.

    The noise levels are those of the authors' code.
    """
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True,
                                        flow_shift=shift)
    levels = torch.linspace(1 - 1 / scheduler.config.num_train_timesteps, 0, steps + 1)[:-1]
    scheduler.set_timesteps(sigmas=levels.double().numpy())
    for timestep in progress(list(scheduler.timesteps)):
        v = velocity(x, timestep.item() / scheduler.config.num_train_timesteps)
        x = scheduler.step(v, timestep, x).prev_sample
    return x
