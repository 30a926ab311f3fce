"""Train with another objective, or with a part of ReViSE switched off, to compare with USO.

    python -m experiments.train --objective rwr                  # Table 4
    python -m experiments.train --objective refl --steps 500     # also grpo; all flags of train.py
    python -m experiments.train --without baseline --lambda 3    # also flow, vlm, position
    python -m experiments.train --critic weights/hardened        # judged by another VLM
    python -m experiments.train --resume out/rwr                 # go on, bit for bit

    python -m experiments.train --objective own-edits --pairs 4000 --items 100
    python -m experiments.train --objective own-edits --pairs pairs.jsonl --data triplets.jsonl

The loop is train.py's, and so are its flags and what it leaves in the run's folder; steps.py says
what an objective does in a step. With uso or sft and nothing switched off this is train.py.

own-edits is not in the paper: flow matching on triplets as ever, and the critic is asked about what
the model makes of pairs, sources with instructions that have no target. --pairs is how many of the
tiny world, or a manifest whose lines need no target_video_path.
"""

import hashlib
from functools import partial
from pathlib import Path
from typing import Callable

import torch

import train
from common.files import BadInput, Parser, between, positive, run_script
from common.run import claim_folder, read_run
from critic import Critic
from experiments.another_vlm import with_vlm_of
from experiments.pairs import TripletsAndPairs, batches_of_pairs
from experiments.steps import (KEEP, grpo_step, no_flow_step, own_edit_step, refl_step, rwr_step,
                               with_baseline)

STEPS = {"uso": train.uso_step, "sft": train.uso_step, "rwr": rwr_step, "refl": refl_step,
         "grpo": grpo_step, "own-edits": own_edit_step}
PARTS = ("baseline", "negative-baseline", "flow", "vlm", "position")


def parse(argv=None):
    """(this script's flags, train.py's). Raises BadInput for the flags of both."""
    parser = Parser(epilog="And all flags of train.py.", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--objective", choices=STEPS, help="what a step does (without it: uso)")
    add("--without", nargs="+", choices=PARTS, metavar="PART",
        help="switch off: baseline (m_0 = 0), negative-baseline (m_0 = 0 where it is below), flow "
             "(its loss), vlm (its states), position (of the visual tokens)")
    add("--critic", metavar="FOLDER",
        help="with another VLM, which judges (without it: the model's own)")
    add("--pairs", type=number_or_file, metavar="N|FILE",
        help="own-edits: how many pairs of the tiny world, or a manifest without targets")
    add("--keep", type=between(0, 1000), metavar="W",
        help=f"own-edits: weight of the loss on what of the source is smeared ({KEEP:g})")
    add("--with-m0", action="store_true", help="own-edits: judge the gain over the source, as USO")
    add("--out", help="run folder (without it: out/<objective>[-<data>])")
    add("--resume", type=Path, metavar="RUN", help="run folder to go on with")
    args, rest = parser.parse_known_args(argv)
    if args.resume:
        read_objective(args)
        how = train.parse([*rest, "--resume", str(args.resume)])
    else:
        args.objective, args.without = args.objective or "uso", args.without or []
        rest += ["--objective", "sft"] if args.objective == "sft" else []
        rest += ["--out", args.out] if args.out else []
        how = train.parse(rest)
        how.out = how.out if args.out else train.default_folder(args.objective, how.data)
    check(args, how)
    if args.objective == "own-edits" and args.keep is None:
        args.keep = KEEP
    return args, how


def number_or_file(text: str) -> int | str:
    """How many, or the name of a manifest, as a flag's `type`."""
    return positive(text) if text.lstrip("-").isdigit() else text


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


def settings_of(args) -> dict:
    """What stands in run.json beside train.py's settings, so that the run can go on."""
    name = args.objective
    if args.without:
        name += f" without {' '.join(args.without)}"
    settings = {"objective": name, "critic": args.critic}
    if args.pairs:
        settings |= {"pairs": str(args.pairs), "keep": args.keep, "with_m0": args.with_m0}
    if isinstance(args.pairs, str):              # another manifest of this name is another run
        content = hashlib.sha256(Path(args.pairs).read_bytes())
        settings["pairs"] += f" {content.hexdigest()[:16]}"
    return settings


def read_objective(args) -> None:
    """Take objective and switches from the run that is to go on."""
    given = (args.objective, args.without, args.critic, args.pairs, args.with_m0, args.out)
    if any(given) or args.keep is not None:
        raise BadInput(f"--resume {args.resume}: goes on with the run's own --objective, "
                       f"--without, --critic, --pairs, --keep, --with-m0 and --out; drop them")
    settings = read_run(args.resume)["settings"]
    name, args.critic = settings.get("objective", ""), settings.get("critic")
    args.with_m0, args.keep = settings.get("with_m0", False), settings.get("keep")
    if "pairs" in settings:
        file, _, _ = settings["pairs"].rpartition(" ")
        args.pairs = file or int(settings["pairs"])
    args.objective, _, parts = name.partition(" without ")
    args.without = parts.split()
    if args.objective not in STEPS or not set(args.without) <= set(PARTS):
        raise BadInput(f"{args.resume}/run.json: unknown objective {name[:80]!r}; "
                       f"delete the folder, or choose another")


def check(args, how) -> None:
    """Raises BadInput for flags that are fine by themselves, but not together."""
    own_edits = args.objective == "own-edits"
    if args.objective in ("rwr", "own-edits") and how.lam == 0:
        raise BadInput(f"--lambda 0: would leave {args.objective} without its critic; drop it")
    if args.critic and how.lam == 0:
        raise BadInput(f"--critic {args.critic}: is not asked at lambda 0; drop it")
    if args.critic:
        hash_of_folder(args.critic)
    if "flow" in args.without and args.objective != "uso":
        raise BadInput(f"--without flow: is for --objective uso, not {args.objective}; drop it")
    if own_edits and not args.pairs:
        raise BadInput("--objective own-edits: needs --pairs, a number or a manifest; 4000 will do")
    if own_edits and {"baseline", "negative-baseline"} & set(args.without):
        raise BadInput("--objective own-edits --without baseline: has no m_0 of itself; drop it")
    if not own_edits and (args.pairs or args.with_m0 or args.keep is not None):
        raise BadInput(f"--pairs, --keep and --with-m0: are for --objective own-edits, not "
                       f"{args.objective}; drop them")
    if isinstance(args.pairs, str) and not Path(args.pairs).is_file():
        raise BadInput(f"--pairs {args.pairs}: no such file; give a manifest, or a number")


def step_of(args) -> Callable:
    """The step, with what is switched off in it."""
    step = no_flow_step if "flow" in args.without else STEPS[args.objective]
    if args.objective == "own-edits":
        step = partial(step, keep=args.keep)
    if "negative-baseline" in args.without:
        step = with_baseline(step, lambda m_0: m_0.clamp_min(0))
    if "baseline" in args.without:
        step = with_baseline(step, torch.zeros_like)
    return step


def main(argv=None) -> None:
    args, how = parse(argv)
    settings = {**train.settings_of(how), **settings_of(args)}
    train.begin(how, settings)
    model = train.load(how)
    model.without(args.without)
    latents = train.encode(model, how)
    critic, said = None, how.cache
    if how.lam > 0:
        judge = with_vlm_of(model, args.critic) if args.critic else model
        critic = Critic(judge, how.think, how.decode)
    if args.critic:                              # what it says of the sources is kept apart
        said = how.cache / hash_of_folder(args.critic)
    pairs = None
    if args.pairs:
        pairs = batches_of_pairs(model, critic, args.pairs, how, said, args.with_m0)
    how.cache = said
    batches = train.make_batches(model, critic, latents, how)
    if pairs:
        batches = TripletsAndPairs(batches, pairs)
    claim_folder(how.out, how.argv, settings, train.may_grow(how))
    run = train.train(model, critic, batches, how, step_of(args), settings["objective"])
    train.end(run, model, latents, how, settings)


if __name__ == "__main__":
    run_script(main, "stopped and saved; the same command goes on from here")
