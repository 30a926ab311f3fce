"""Train with another objective, or with a part of ReViSE switched off, to compare with USO.

    python -m experiments.train --objective rwr                  # Table 4
    python -m experiments.train --objective refl --steps 500     # also grpo; all flags of train.py
    python -m experiments.train --without baseline --lambda 3    # also flow, vlm, position
    python -m experiments.train --items 100 --pairs 4000 --with-m0          # own edits, with m_0
    python -m experiments.train --resume out/rwr                 # go on, bit for bit

The loop is train.py's, and so are its flags and what it leaves in the run's folder; steps.py says
what an objective does in a step. With nothing named or switched off this is train.py.
"""

from pathlib import Path
from typing import Callable

import torch

import train
from common.files import BadInput, Parser, run_script
from common.run import claim_folder, read_run
from experiments.steps import grpo_step, no_flow_step, refl_step, rwr_step, with_baseline

OBJECTIVES = ("uso", "sft", "rwr", "refl", "grpo")
STEPS = {"uso": train.uso_step, "sft": train.uso_step, "own-edits": train.own_edit_step,
         "rwr": rwr_step, "refl": refl_step, "grpo": grpo_step}
PARTS = ("baseline", "negative-baseline", "flow", "vlm", "position")


def parse(argv=None):
    """(this script's flags, train.py's). Raises BadInput for the flags of both."""
    parser = Parser(epilog="And all flags of train.py.", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--objective", choices=OBJECTIVES, help="what a step does (without it: uso)")
    add("--without", nargs="+", choices=PARTS, metavar="PART", default=[],
        help="switch off: baseline (m_0 = 0), negative-baseline (m_0 = 0 where it is below), flow "
             "(its loss), vlm (its states), position (of the visual tokens)")
    add("--with-m0", action="store_true", help="own edits: judge the gain over the source, as USO")
    add("--out", help="run folder (without it: out/<objective>[-<data>])")
    add("--resume", type=Path, metavar="RUN", help="run folder to go on with")
    args, rest = parser.parse_known_args(argv)
    if args.resume:
        read_objective(args)
        return args, train.parse([*rest, "--resume", str(args.resume)])
    rest += ["--objective", "sft"] if args.objective == "sft" else []
    rest += ["--out", args.out] if args.out else []
    how = train.parse(rest)
    if args.objective in (None, "uso", "sft"):
        args.objective = how.objective           # with --pairs it is own-edits
    how.out = how.out if args.out else train.default_folder(args.objective, how.data)
    check(args, how)
    return args, how


def read_objective(args) -> None:
    """Take objective and switches from the run that is to go on."""
    if args.objective or args.without or args.with_m0 or args.out:
        raise BadInput(f"--resume {args.resume}: goes on with the run's own --objective, "
                       f"--without, --with-m0 and --out; drop them")
    settings = read_run(args.resume)["settings"]
    args.with_m0 = settings.get("with_m0", False)
    name = settings.get("objective", "")
    args.objective, _, parts = name.partition(" without ")
    args.without = parts.split()
    if args.objective not in STEPS or not set(args.without) <= set(PARTS):
        raise BadInput(f"{args.resume}/run.json: unknown objective {name[:80]!r}; "
                       f"delete the folder, or choose another")


def check(args, how) -> None:
    """Raises BadInput for flags that are fine by themselves, but not together."""
    own_edits = args.objective == "own-edits"
    of_uso = {"baseline", "negative-baseline", "flow"} & set(args.without)
    if args.objective == "rwr" and how.lam == 0:
        raise BadInput("--lambda 0: would leave rwr without its critic; drop it")
    if how.pairs and not own_edits:
        raise BadInput(f"--pairs {how.pairs}: {args.objective} has no use for them; drop one")
    if args.with_m0 and not own_edits:
        raise BadInput("--with-m0: is for own edits, with --pairs; drop it")
    if own_edits and of_uso:
        raise BadInput(f"--without {of_uso.pop()}: is for USO, not for own edits; drop it")
    if "flow" in args.without and args.objective != "uso":
        raise BadInput(f"--without flow: is for --objective uso, not {args.objective}; drop it")


def settings_of(args, how) -> dict:
    """What must be equal for a run to be the same run."""
    settings = train.settings_of(how) | {"objective": args.objective, "with_m0": args.with_m0}
    if args.without:
        settings["objective"] += f" without {' '.join(args.without)}"
    return settings


def step_of(args) -> Callable:
    """The step, with what is switched off in it."""
    step = no_flow_step if "flow" in args.without else STEPS[args.objective]
    if "negative-baseline" in args.without:
        step = with_baseline(step, lambda m_0: m_0.clamp_min(0))
    if "baseline" in args.without:
        step = with_baseline(step, torch.zeros_like)
    return step


def main(argv=None) -> None:
    args, how = parse(argv)
    settings = settings_of(args, how)
    train.begin(how, settings)
    model = train.load(how)
    model.switch_off(args.without)
    latents = train.encode(model, how)
    critic = train.make_critic(model, how)
    batches = train.make_batches(model, critic, latents, how, args.with_m0)
    claim_folder(how.out, how.argv, settings, train.may_grow(how))
    run = train.train(model, critic, batches, how, step_of(args), settings["objective"])
    train.end(run, model, latents, how, settings)


if __name__ == "__main__":
    run_script(main, "stopped and saved; the same command goes on from here")
