"""What else could a training step be? Other objectives and switches, beside train.py's two.

    rwr_step       reward-weighted flow matching, no gradient through the critic (Table 4)
    refl_step      reflection on own edits of the triplets' sources
    grpo_step      the same reward as a policy gradient
    no_flow_step   USO without L_FM: the reason loss alone
    with_baseline  a step with another m_0

A step gets (model, critic, batch, lam) and returns the loss and what is logged, as uso_step does:
data, gate, critic, lambda and the loop are the same, train.py's. `python -m experiments.train`
trains with them.

Axis letters: B batch, G gated samples, C f h w latents, T tokens, D width.
"""

from dataclasses import replace
from typing import Callable

import torch

from critic import critic_loss
from data import Batch
from experiments.rivals import GROUP, group_loss
from model import add_noise, flow_loss, velocity_target
from train import own_edit_step, uso_step


def refl_step(model, critic, batch: Batch, lam: float) -> tuple[torch.Tensor, dict]:
    """ReFL: as own edits, with the same reward, of the triplets' own sources."""
    return own_edit_step(model, critic, replace(batch, pairs=batch), lam)


def grpo_step(model, critic, batch: Batch, lam: float) -> tuple[torch.Tensor, dict]:
    """L_FM + lambda * the policy gradient of the critic's margin, on samples with t < tau."""
    loss, log = uso_step(model, critic, batch, lam=0)
    if lam == 0 or not batch.near.any():
        return loss, log
    shown = batch.select(batch.near)
    frames = shown.frames.repeat_interleave(GROUP, 0)                   # (G * GROUP, K, 3, H, W)
    instructions = repeat_each(shown.instructions)
    thoughts = None if shown.thoughts is None else repeat_each(shown.thoughts)

    def reward(x0):
        return critic.margin(frames, critic.decode(x0), instructions, thoughts)
    c = model.context(shown.source, shown.bridged, shown.text)
    policy, margin = group_loss(model, c, shown.source, reward, batch.seed)            # (G,), (G,)
    return add_reason(loss, log, lam, policy, margin, batch.n_near)


def rwr_step(model, critic, batch: Batch, lam: float) -> tuple[torch.Tensor, dict]:
    """w * L_FM, with w from the critic's margin on samples with t < tau; lam is not used."""
    x_t, v, flow = flow_matching(model, batch)
    if not batch.near.any():
        return flow.mean(), log_of(flow.mean(), batch)
    with torch.no_grad():
        reason, margin = critic_loss(critic, x_t, v, batch)             # (G,), (G,)
    weights = torch.ones_like(flow)                                     # (B,)
    weights[batch.near] = rwr_weights(margin, batch.baseline[batch.near])
    loss = (weights * flow).mean()
    return add_reason(loss, log_of(loss, batch), 0, reason, margin, batch.n_near)


def no_flow_step(model, critic, batch: Batch, lam: float) -> tuple[torch.Tensor, dict]:
    """lambda * L_reason alone: what holds the generator in place where flow matching does not?"""
    x_t, v, flow = flow_matching(model, batch)
    nothing = 0 * flow.mean()                    # its gradient is zero, not missing
    if lam == 0 or not batch.near.any():
        return nothing, log_of(nothing, batch)
    reason, margin = critic_loss(critic, x_t, v, batch)                 # (G,), (G,)
    return add_reason(nothing, log_of(nothing, batch), lam, reason, margin, batch.n_near)


def with_baseline(step: Callable, change: Callable) -> Callable:
    """The same step with change(m_0) for m_0.

    Without it the critic's margin itself counts, not its gain over the source. A critic that says a
    clear No to the source has an m_0 far below zero, and against that even a poor edit is far
    ahead: there is hardly a gradient left.
    """
    def changed(model, critic, batch, lam):
        return step(model, critic, replace(batch, baseline=change(batch.baseline)), lam)
    return changed


# ------------------------------------------------------------------------ what the steps share

def flow_matching(model, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How uso_step begins: x_t and v (B, C, f, h, w), and L_FM of each sample, (B,)."""
    x_t = add_noise(batch.target, batch.noise, batch.t)                 # Eq. 2
    c = model.context(batch.source, batch.bridged, batch.text)          # Eq. 1
    v = model.velocity(x_t, batch.t, c, batch.source)
    return x_t, v, flow_loss(v, velocity_target(batch.target, batch.noise))


def rwr_weights(margin: torch.Tensor, baseline: torch.Tensor) -> torch.Tensor:
    """w = 2 sigmoid(m - m_0), without gradient: 1 where the edit is no better than none. (G,)"""
    return 2 * torch.sigmoid(margin - baseline).detach()


def repeat_each(texts: list[str]) -> list[str]:
    """Each text GROUP times, side by side."""
    return [text for text in texts for _ in range(GROUP)]


def log_of(loss: torch.Tensor, batch: Batch) -> dict:
    """What every step logs."""
    return {"flow_loss": loss.item(), "trigger_rate": batch.near.float().mean().item()}


def add_reason(loss: torch.Tensor, log: dict, lam: float, reason: torch.Tensor,
               margin: torch.Tensor, n_near: float) -> tuple[torch.Tensor, dict]:
    """How uso_step ends (Eq. 5): loss + lambda * L_reason, and the log with what the critic said.

    loss: a scalar. reason, margin: (G,) of the samples that the critic was asked about.
    """
    log = {**log, "reason_loss": reason.sum().item() / n_near,
           "p_yes": margin.sigmoid().sum().item() / n_near}
    return loss + lam * reason.sum() / n_near, log
