"""What else could a training step be? Other objectives and switches, beside train.uso_step.

    rwr_step       reward-weighted flow matching, no gradient through the critic (Table 4)
    refl_step      the same reward at the end of the generator's own rollout
    grpo_step      the same reward as a policy gradient
    no_flow_step   USO without L_FM: the reason loss alone
    no_baseline    a step with m_0 = 0
    no_negative_baseline    a step with m_0 = 0 where the critic says No to the unedited source

A step gets (model, critic, batch, lam) and returns the loss and what is logged, as uso_step does:
data, gate, critic, lambda and the loop are the same, train.py's. `python -m experiments.train`
trains with them.

Axis letters: B batch, G gated samples, C f h w latents, T tokens, D width.
"""

from dataclasses import replace
from typing import Callable

import torch

from critic import critic_loss, reason_loss
from experiments.rivals import GROUP, group_loss, refl_estimate
from model import add_noise, flow_loss, velocity_target


def rwr_step(model, critic, batch, lam) -> tuple[torch.Tensor, dict]:
    """w * L_FM, with w from the critic's margin on samples with t < tau; lam is not used."""
    x_t, c, v, flow = flow_matching(model, batch)
    if not batch.near.any():
        return total(flow.mean(), batch)
    with torch.no_grad():
        reason, margin = critic_loss(critic, x_t, v, batch)                  # (G,), (G,)
    weights = torch.ones_like(flow)                                          # (B,)
    weights[batch.near] = rwr_weights(margin, batch.baseline[batch.near])
    return total((weights * flow).mean(), batch, 0, reason, margin)


def refl_step(model, critic, batch, lam) -> tuple[torch.Tensor, dict]:
    """L_FM + lambda * L_reason, as USO, but of the estimate that ends the model's own rollout."""
    x_t, c, v, flow = flow_matching(model, batch)
    if lam == 0 or not batch.near.any():
        return total(flow.mean(), batch)
    near, shown = batch.near, batch.select(batch.near)
    x0_hat = refl_estimate(model, shown.noise, shown.t, c[near], shown.source)
    margin = critic.margin(shown.frames, critic.decode(x0_hat), shown.instructions,
                           shown.thoughts)                                   # (G,)
    reason = reason_loss(margin, shown.baseline)                             # (G,)
    return total(flow.mean(), batch, lam, reason, margin)


def grpo_step(model, critic, batch, lam) -> tuple[torch.Tensor, dict]:
    """L_FM + lambda * the policy gradient of the critic's margin, on samples with t < tau."""
    x_t, c, v, flow = flow_matching(model, batch)
    if lam == 0 or not batch.near.any():
        return total(flow.mean(), batch)
    near, shown = batch.near, batch.select(batch.near)
    frames = shown.frames.repeat_interleave(GROUP, 0)                        # (G * GROUP, K, ...)
    instructions = repeat_each(shown.instructions)
    thoughts = None if shown.thoughts is None else repeat_each(shown.thoughts)

    def reward(x0):
        return critic.margin(frames, critic.decode(x0), instructions, thoughts)
    policy, margin = group_loss(model, c[near], shown.source, reward, batch.seed)  # (G,), (G,)
    return total(flow.mean(), batch, lam, policy, margin)


def no_flow_step(model, critic, batch, lam) -> tuple[torch.Tensor, dict]:
    """lambda * L_reason alone: what holds the generator in place where flow matching does not?"""
    x_t, c, v, flow = flow_matching(model, batch)
    nothing = 0 * flow.mean()                    # its gradient is zero, not missing
    if lam == 0 or not batch.near.any():
        return total(nothing, batch)
    reason, margin = critic_loss(critic, x_t, v, batch)                      # (G,), (G,)
    return total(nothing, batch, lam, reason, margin)


def no_baseline(step: Callable) -> Callable:
    """The same step with m_0 = 0: the critic's margin itself, not its gain over the source."""
    def step_without(model, critic, batch, lam):
        return step(model, critic, replace(batch, baseline=torch.zeros_like(batch.baseline)), lam)
    return step_without


def no_negative_baseline(step: Callable) -> Callable:
    """The same step with what of m_0 is above zero: a bias to say Yes to what did nothing.

    A critic that says a clear No to the source has none, and against that No even a poor edit is
    far ahead: there is hardly a gradient left.
    """
    def step_without(model, critic, batch, lam):
        return step(model, critic, replace(batch, baseline=batch.baseline.clamp_min(0)), lam)
    return step_without


# ------------------------------------------------------------------------ what the steps share

def flow_matching(model, batch) -> tuple:
    """The first half of uso_step: x_t, c, v, and L_FM of each sample, (B,)."""
    x_t = add_noise(batch.target, batch.noise, batch.t)                      # Eq. 2
    c = model.context(batch.source, batch.bridged, batch.text)               # Eq. 1
    v = model.velocity(x_t, batch.t, c, batch.source)                        # (B, C, f, h, w)
    return x_t, c, v, flow_loss(v, velocity_target(batch.target, batch.noise))


def rwr_weights(margin: torch.Tensor, baseline: torch.Tensor) -> torch.Tensor:
    """w = 2 sigmoid(m - m_0), without gradient: 1 where the edit is no better than none. (G,)"""
    return 2 * torch.sigmoid(margin - baseline).detach()


def repeat_each(texts: list[str]) -> list[str]:
    """Each text GROUP times, side by side."""
    return [text for text in texts for _ in range(GROUP)]


def total(flow: torch.Tensor, batch, lam: float = 0, reason: torch.Tensor | None = None,
          margin: torch.Tensor | None = None) -> tuple[torch.Tensor, dict]:
    """The second half of uso_step, Eq. 5: flow + lambda * L_reason, and what is logged.

    flow: a scalar. reason, margin: (G,) of the gated samples; None where the critic is not asked.
    """
    log = {"flow_loss": flow.item(), "trigger_rate": batch.near.float().mean().item()}
    if reason is None:
        return flow, log
    log["reason_loss"] = reason.sum().item() / batch.n_near
    log["p_yes"] = margin.sigmoid().sum().item() / batch.n_near
    return flow + lam * reason.sum() / batch.n_near, log
