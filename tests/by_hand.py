"""The judge of the training step: its loss, one sample after the other, from the clips themselves.

The whole method on one page, without batches, caches, key-value prefixes or precision.
"""

import math

import torch

from common.video import from_bytes, to_bytes
from critic import Critic
from data import batch_indices, draws
from presets import PRESETS

TINY = PRESETS["tiny"]


def by_hand(model, latents, args, step):
    """The loss of step number `step`, and what is logged of it."""
    asked = Critic(model, args.think)
    ts, noises, us = draws(step, args.seed, args.batch, TINY.latent_shape)
    numbers = batch_indices(6, args.batch, step, args.seed)
    flows, reasons, margins = [], [], []
    for i, t, noise, u in zip(numbers, ts, noises, us):
        source, target = (clip[None] for clip in latents.items[i].load())
        words = [latents.items[i].instruction]
        z, x0 = model.encode_video(source), model.encode_video(target)
        h, s = model.encode_vlm(source, words), model.encode_text(words)
        if u < args.drop:
            h, s = ([x] for x in model.unconditional())
        x_t = (1 - t) * x0 + t * noise                                  # Eq. 2
        c = model.context(z, model.bridge(h), s)                        # Eq. 1
        v = model.velocity(x_t, t[None], c, z)
        flow = (v - (noise - x0)).square().mean()
        if t < args.tau and args.objective != "sft":                    # the gate
            x0_hat = x_t - t * v                                        # Eq. 3
            frames = decode(model, x0_hat, args.decode)
            seen = from_bytes(to_bytes(model.vlm.pick(source)))         # as the cache keeps them
            said = asked.thoughts(seen, words, seen)
            m0 = asked.margin(seen, seen, words, said)[0].detach()
            m = asked.margin(seen, frames, words, None if args.think == "full" else said)[0]
            margins.append(torch.sigmoid(m.detach()))
            reasons.append(torch.log1p(torch.exp(m0 - m)))              # Eq. 4
            if args.objective == "rwr":
                flow = flow * 2 / (1 + torch.exp(m0 - m.detach()))
        flows.append(flow)
    loss = torch.stack(flows).mean()
    if args.objective == "uso" and args.lam and reasons:
        loss = loss + args.lam * torch.stack(reasons).mean()            # Eq. 5
    return loss, {"reason_loss": torch.stack(reasons).mean().item() if reasons else math.nan,
                  "p_yes": torch.stack(margins).mean().item() if margins else math.nan,
                  "trigger_rate": (ts < args.tau).float().mean().item()}


def decode(model, x0_hat, how):
    """K frames (1, K, 3, H, W), picked from the whole clip, or latent frames alone."""
    if how == "exact":
        return model.vlm.pick(model.decode_video(x0_hat))
    alone = [model.decode_video(x0_hat[:, :, k:k + 1]) for k in range(x0_hat.shape[2])]
    return torch.cat(alone, 1)


def a_step(batch, tau, gated, dropped=None, drop=.5):
    """The first step with so many gated and dropped samples."""
    for step in range(500):
        t, _, u = draws(step, 0, batch, TINY.latent_shape)
        if (t < tau).sum() == gated and dropped in (None, (u < drop).sum()):
            return step
    raise LookupError("none of 500 steps")
