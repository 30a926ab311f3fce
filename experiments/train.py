"""Train with another objective, or against another m_0, to compare with USO.

    python -m experiments.train --objective rwr                  # Table 4
    python -m experiments.train --objective refl --steps 500     # all flags of train.py
    python -m experiments.train --m0 none --lambda 3             # also above-0
    python -m experiments.train --items 100 --pairs 4000 --m0 source        # own edits, with m_0
    python -m experiments.train --objective sft --items 100 --chosen out/chosen
    python -m experiments.train --objective rwr --resume out/rwr --steps 2000        # go on

The loop is train.py's, and so are its flags and what it leaves in the run's folder. A step gets
(model, critic, batch, lam) and returns the loss and what is logged, as train.uso_step does. With
nothing named this is train.py.

Axis letters: B batch, G gated samples, C f h w latents, T tokens, D width.
"""

from dataclasses import replace
from pathlib import Path
from typing import Callable

import torch

import train
from common.files import BadInput, Parser, run_script
from common.run import claim_folder
from critic import critic_loss
from data import Batch
from experiments.choose import chosen_batches, hash_of_chosen
from model import add_noise, flow_loss, velocity_target

# ----------------------------------------------------------------------------------- the objectives

def rwr_step(model, critic, batch: Batch, lam: float) -> tuple[torch.Tensor, dict]:
    """Reward-weighted flow matching: no gradient through the critic (Table 4). lam is not used."""
    x_t = add_noise(batch.target, batch.noise, batch.t)                 # Eq. 2
    c = model.context(batch.source, batch.bridged, batch.text)          # Eq. 1
    v = model.velocity(x_t, batch.t, c, batch.source)                   # (B, C, f, h, w)
    flow = flow_loss(v, velocity_target(batch.target, batch.noise))     # (B,)
    log = {"trigger_rate": batch.near.float().mean().item()}
    if batch.near.any():
        with torch.no_grad():
            reason, margin = critic_loss(critic, x_t, v, batch)         # (G,), (G,)
        weights = torch.ones_like(flow)                                 # (B,)
        gain = margin - batch.baseline[batch.near]                      # m - m_0
        weights[batch.near] = 2 * torch.sigmoid(gain)                   # 1: no better than none
        flow = weights * flow
        log["reason_loss"] = reason.sum().item() / batch.n_near
        log["p_yes"] = margin.sigmoid().sum().item() / batch.n_near
    log["flow_loss"] = flow.mean().item()
    return flow.mean(), log


def refl_step(model, critic, batch: Batch, lam: float) -> tuple[torch.Tensor, dict]:
    """ReFL: as own edits, with the same reward, of the triplets' own sources."""
    return train.own_edit_step(model, critic, replace(batch, pairs=batch), lam)


STEPS = {"uso": train.uso_step, "sft": train.uso_step, "own-edits": train.own_edit_step,
         "rwr": rwr_step, "refl": refl_step}
M_0 = {"source": lambda m_0: m_0, "above-0": lambda m_0: m_0.clamp_min(0), "none": torch.zeros_like}


def with_m_0(step: Callable, change: Callable) -> Callable:
    """The same step with change(m_0) for m_0.

    Without it the critic's margin itself counts, not its gain over the source. A critic that says a
    clear No to the source has an m_0 far below zero, and against that even a poor edit is far
    ahead: there is hardly a gradient left.
    """
    def changed(model, critic, batch, lam):
        if batch.pairs:
            pairs = replace(batch.pairs, baseline=change(batch.pairs.baseline))
            batch = replace(batch, pairs=pairs)
        batch = replace(batch, baseline=change(batch.baseline))
        return step(model, critic, batch, lam)
    return changed


def with_chosen(step: Callable) -> Callable:
    """The same step, and L_FM on as many own edits that `experiments.choose` has chosen."""
    def both(model, critic, batch, lam):
        loss, log = step(model, critic, batch, lam)
        more, _ = train.uso_step(model, critic, batch.pairs, lam=0)
        return loss + more, {**log, "chosen_loss": more.item()}
    return both


# ------------------------------------------------------------------------------------- the command

def parse(argv=None):
    """(this script's flags, train.py's). Raises BadInput for the flags of both."""
    parser = Parser(epilog="And all flags of train.py.", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--objective", choices=[name for name in STEPS if name != "own-edits"],
        help="what a step does (without it: uso; with --pairs: own edits)")
    add("--m0", choices=M_0, help="the margin that an edit is judged against: its source's (USO's "
        "default), where that is above 0, or none (own edits')")
    add("--chosen", type=Path, metavar="FOLDER", help="own edits to learn, too, from choose.py")
    add("--out", help="run folder (without it: out/<objective>[-<data>])")
    args, rest = parser.parse_known_args(argv)
    rest += ["--objective", "sft"] if args.objective == "sft" else []
    rest += ["--out", args.out] if args.out else []
    how = train.parse(rest)
    if args.objective in (None, "uso", "sft"):
        args.objective = how.objective           # with --pairs it is own-edits
    args.m0 = args.m0 or ("none" if args.objective == "own-edits" else "source")
    if not (args.out or how.resume):
        how.out = train.default_folder(args.objective, how.data)
    if args.chosen and args.objective not in ("uso", "sft"):
        raise BadInput(f"--chosen {args.chosen}: goes with --objective uso or sft; drop one")
    if args.objective == "rwr" and how.lam == 0:
        raise BadInput("--lambda 0: would leave rwr without its critic; drop it")
    if how.pairs and args.objective != "own-edits":
        raise BadInput(f"--pairs {how.pairs}: {args.objective} has no use for them; drop one")
    return args, how


def main(argv=None) -> None:
    args, how = parse(argv)
    settings = train.settings_of(how) | {"objective": args.objective, "m0": args.m0}
    if args.chosen:
        settings |= {"chosen": str(args.chosen), "chosen edits": hash_of_chosen(args.chosen)}
    train.begin(how, settings)
    model = train.load(how)
    latents = train.encode(model, how)
    critic = train.make_critic(model, how)
    chosen = chosen_batches(model, args.chosen, how) if args.chosen else None
    batches = train.make_batches(model, critic, latents, how, with_m_0=True)
    claim_folder(how.out, how.argv, settings, train.may_grow(how))
    step = with_m_0(STEPS[args.objective], M_0[args.m0])
    if chosen:
        batches.pairs, step = chosen, with_chosen(step)
    run = train.train(model, critic, batches, how, step, args.objective)
    train.end(run, model, latents, how, settings)


if __name__ == "__main__":
    run_script(main, "stopped and saved; the same command goes on from here")
