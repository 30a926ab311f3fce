"""What else could a training step be? Other objectives and switches, beside train.uso_step.

    rwr_step       reward-weighted flow matching, no gradient through the critic (Table 4)
    own_edit_step  flow matching on triplets, reflection on own edits of pairs without a target
    refl_step      the same on the triplets' own sources
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

from critic import clean_estimate, critic_loss, reason_loss
from data import Batch
from experiments.pairs import WithPairs
from experiments.rivals import GROUP, group_loss, rollout
from model import add_noise, flow_loss, velocity_target
from train import uso_step


KEEP = 1.                        # the weight of keep_loss, chosen on the val split
SMALL = .1                       # a change of a pixel below it is none that an edit would ask for


def own_edit_step(model, critic, batch: WithPairs, lam: float,
                  keep: float = KEEP) -> tuple[torch.Tensor, dict]:
    """Flow matching on triplets, self-reflection on what the model itself makes of pairs: sources
    with instructions, and no target. Not in the paper.

    In uso_step, x_t is a noised target, and its one-step estimate shows that target whatever the
    generator would do. Here x_t is the end of the generator's own rollout. The critic asks for the
    edit and hardly sees what is lost beside it: keep_loss does. Loss and log as in uso_step.
    """
    loss, log = uso_step(model, critic, batch, lam=0)                   # Eq. 2, on triplets
    log["trigger_rate"] = batch.pairs.near.float().mean().item()
    if lam > 0 and batch.pairs.near.any():
        pairs = batch.pairs.select(batch.pairs.near)                    # gate    t < tau
        c = model.context(pairs.source, pairs.bridged, pairs.text)      # Eq. 1   (G, T, D)
        x_t = rollout(model, pairs.noise, pairs.t, c, pairs.source)     # without gradient
        v = model.velocity(x_t, pairs.t, c, pairs.source)               # (G, C, f, h, w)
        frames = critic.decode(clean_estimate(x_t, v, pairs.t))         # Eq. 3   (G, K, 3, H, W)
        margin = critic.margin(pairs.frames, frames, pairs.instructions, pairs.thoughts)
        reason = reason_loss(margin, pairs.baseline)                    # Eq. 4   (G,)
        kept = keep_loss(frames, pairs.frames) * edits_source(pairs)    # (G,)
        loss = loss + (lam * reason + keep * kept).sum() / pairs.n_near # Eq. 5
        log["keep_loss"] = kept.sum().item() / pairs.n_near
        log["reason_loss"] = reason.sum().item() / pairs.n_near
        log["p_yes"] = margin.sigmoid().sum().item() / pairs.n_near
    return loss, log


def keep_loss(edited: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """What of the source is nearly there, and not quite: (B, K, 3, H, W) twice -> (B,).

    An edit changes a part, and that clearly. So a small change of a pixel is a smear, and pulled
    back; a large one is meant, and feels nothing: SMALL tanh(|d| / SMALL).
    """
    distance = (edited - source).abs()
    return (SMALL * torch.tanh(distance / SMALL)).mean((1, 2, 3, 4))


def edits_source(batch: Batch) -> torch.Tensor:
    """1 where the source is edited, 0 where it is continued (ICVG): (B,)."""
    return torch.tensor([float(name == "rave") for name in batch.subsets], device=batch.t.device)


def refl_step(model, critic, batch: Batch, lam: float) -> tuple[torch.Tensor, dict]:
    """ReFL: the same reward at the end of a rollout, on the sources of the triplets themselves."""
    return own_edit_step(model, critic, WithPairs(**vars(batch) | {"pairs": batch}), lam, keep=0)


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
