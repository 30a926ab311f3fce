"""Train with another objective, or with a part of ReViSE switched off, to compare with USO.

    python -m experiments.train --objective rwr                  # Table 4
    python -m experiments.train --objective refl --steps 500     # also grpo; all flags of train.py
    python -m experiments.train --without baseline --lambda 3    # also flow, vlm, position
    python -m experiments.train --critic weights/hardened        # judged by another VLM
    python -m experiments.train --resume out/rwr                 # go on, bit for bit

The loop is train.py's, and so are its flags and what it leaves in the run's folder; steps.py says
what an objective does in a step. With uso or sft and nothing switched off this is train.py.
"""

import hashlib
from pathlib import Path

import torch

import train
from common.files import BadInput, Parser, run_script
from common.run import claim_folder, read_run
from critic import Critic
from experiments.another_vlm import with_vlm_of
from experiments.steps import grpo_step, no_flow_step, refl_step, rwr_step, with_baseline

STEPS = {"uso": train.uso_step, "sft": train.uso_step, "rwr": rwr_step, "refl": refl_step,
         "grpo": grpo_step}
PARTS = ("baseline", "negative-baseline", "flow", "vlm", "position")


def parse(argv=None):
    """(this script's flags, train.py's argv). Raises BadInput for the flags of both."""
    parser = Parser(prog="python -m experiments.train", epilog="And all flags of train.py.",
                    description=__doc__.split("\n\n")[0])
    parser.add_argument("--objective", choices=STEPS, help="what a step does (without it: uso)")
    parser.add_argument("--without", nargs="+", choices=PARTS, metavar="PART",
                        help="switch off: baseline (m_0 = 0), negative-baseline (m_0 = 0 where it "
                             "is below), flow (its loss), vlm (its states), position (of the "
                             "visual tokens)")
    parser.add_argument("--critic", metavar="FOLDER",
                        help="with another VLM, which judges (without it: the model's own)")
    parser.add_argument("--out", help="run folder (without it: out/<objective>)")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="run folder to go on with")
    args, rest = parser.parse_known_args(argv)
    if args.resume:
        read_objective(args)
        rest += ["--resume", str(args.resume)]
    else:
        args.objective, args.without = args.objective or "uso", args.without or []
        rest += ["--out", args.out or f"out/{args.objective}"]
        if args.objective == "sft":
            rest += ["--objective", "sft"]
    train_args = train.parse(rest)
    check(args, train_args)
    if args.critic:                              # what it says of the sources is kept beside them
        rest += ["--cache", str(train_args.cache / hash_of_folder(args.critic))]
    return args, rest


def hash_of_folder(folder: str) -> str:
    """Names the weights in a folder. Raises BadInput where there are none."""
    if not any(Path(folder).rglob("*.safetensors")):
        raise BadInput(f"--critic {folder}: holds no weights; weights/hardened does")
    sha = hashlib.sha256()
    add_weights(sha, Path(folder))
    return sha.hexdigest()[:16]


def add_weights(sha, folder: Path) -> None:
    """Hash the bytes of all weights in a folder."""
    for file in sorted(folder.rglob("*.safetensors")):
        sha.update(file.read_bytes())


def name_of(args) -> str:
    """The objective with what is switched off, as it stands in run.json."""
    if not args.without:
        return args.objective
    return f"{args.objective} without {' '.join(args.without)}"


def read_objective(args) -> None:
    """Take objective and switches from the run that is to go on."""
    if args.objective or args.without or args.out or args.critic:
        raise BadInput(f"--resume {args.resume}: goes on with the run's own --objective, "
                       f"--without, --critic and --out; drop them")
    settings = read_run(args.resume)["settings"]
    name, args.critic = settings.get("objective", ""), settings.get("critic")
    args.objective, _, parts = name.partition(" without ")
    args.without = parts.split()
    if args.objective not in STEPS or not set(args.without) <= set(PARTS):
        raise BadInput(f"{args.resume}/run.json: unknown objective {name[:80]!r}; "
                       f"delete the folder, or choose another")


def check(args, train_args) -> None:
    """Raises BadInput for flags that are fine by themselves, but not together."""
    if args.objective == "rwr" and train_args.lam == 0:
        raise BadInput("--lambda 0: would leave rwr without its critic; drop it, rwr has no lambda")
    if args.critic and train_args.lam == 0:
        raise BadInput(f"--critic {args.critic}: is not asked at lambda 0; drop it")
    if "flow" in args.without and args.objective != "uso":
        raise BadInput(f"--without flow: is for --objective uso, not {args.objective}; drop it")


def main(argv=None) -> None:
    args, rest = parse(argv)
    step = no_flow_step if "flow" in args.without else STEPS[args.objective]
    if "negative-baseline" in args.without:
        step = with_baseline(step, lambda m_0: m_0.clamp_min(0))
    if "baseline" in args.without:
        step = with_baseline(step, torch.zeros_like)

    name, of_run = name_of(args), train.parse(rest)
    settings = {**train.settings_of(of_run), "objective": name, "critic": args.critic}
    train.begin(of_run, settings)
    model = train.load(of_run)
    model.without(args.without)
    latents = train.encode(model, of_run)
    critic = None
    if of_run.lam > 0:
        judge = with_vlm_of(model, args.critic) if args.critic else model
        critic = Critic(judge, of_run.think, of_run.decode)
    batches = train.make_batches(model, critic, latents, of_run)
    claim_folder(of_run.out, of_run.argv, settings, train.may_grow(of_run))
    run = train.train(model, critic, batches, of_run, step, name)
    train.end(run, model, latents, of_run, settings)


if __name__ == "__main__":
    run_script(main, "stopped and saved; the same command goes on from here")
