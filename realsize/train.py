"""train.py at the real size: blocks run again in the backward pass, shards, and no rank that waits.

    python -m realsize.train --preset wan1.3b --weights weights/revise --data triplets.jsonl \\
        --batch 8 --accumulate 8 --lr 3e-6 --clip 0.1 --drop 0.2                  # one GPU
    torchrun --nproc_per_node 8 -m realsize.train --parallel fsdp --gate-together 8 \\
        --preset wan1.3b --weights weights/revise --data triplets.jsonl \\
        --batch 8 --lr 3e-6 --clip 0.1 --drop 0.2                                 # eight

All other flags are train.py's; `python train.py --help` has them. To resume, give the same flags
with --resume RUN. A checkpoint is of one format, whatever number of ranks wrote it.

Left out: pipeline and tensor parallelism (1.3B needs neither), and overlapping the gradients'
all-reduce under "ddp" with the backward pass: it is 5.7 GB a step, some hundredths of a step
between the GPUs of one machine.
"""

import argparse
import sys
from functools import partial

import train
from common.distributed import WORLD_SIZE
from common.files import BadInput, Parser, positive, run_script
from presets import PRESETS
from realsize.gate_together import sample_timesteps_together
from realsize.recompute import recompute_activations
from realsize.shards import gathered, shard
from realsize.weighting import bell_step


def flags() -> Parser:
    parser = Parser(prog="realsize.train", description="Train at the real size; "
                    "all other flags are those of train.py.")
    add = parser.add_argument
    add("--parallel", choices=("ddp", "fsdp"), default="ddp",
        help="under torchrun: whole copies, or shards of G and of the VLM")
    add("--gate-together", type=positive, metavar="N",
        help="N samples in a row are below tau together, or none is: with the number of ranks, all "
             "ask the critic in the same steps and none waits for it")
    add("--recompute", action=argparse.BooleanOptionalAction,
        help="run blocks again in the backward pass (without it: the real size does)")
    add("--flow-weight", choices=("none", "bell"), default="none",
        help="on the flow loss: none as in the paper, or Omni-Video's bell over t")
    return parser


def parse(argv=None) -> tuple[argparse.Namespace, list[str]]:
    """This module's flags, and those that are train.py's."""
    args, rest = flags().parse_known_args(sys.argv[1:] if argv is None else argv)
    theirs = train.parse(rest)
    together = (args.gate_together or 1) % WORLD_SIZE == 0 and theirs.think != "full"
    if args.parallel == "fsdp" and theirs.lam > 0 and not together:
        raise BadInput(f"--parallel fsdp: ranks that share the VLM must ask it together: pass "
                       f"--gate-together {WORLD_SIZE}, and not --think full, whose thoughts differ "
                       f"in length")
    if args.recompute is None:
        args.recompute = PRESETS[theirs.preset].bf16
    return args, rest


def prepare(args, model, batches):
    """What `train.main` calls before it makes the optimizer; returns how to make G whole."""
    if args.gate_together:
        batches.timesteps = partial(sample_timesteps_together, ranks=args.gate_together,
                                    tau=batches.tau)
    if args.recompute:
        recompute_activations(model)
    if args.parallel == "fsdp" and WORLD_SIZE > 1:
        shard(model)
        return gathered
    return lambda model: model


def main(argv=None) -> None:
    args, rest = parse(argv)
    step = bell_step if args.flow_weight == "bell" else train.uso_step
    settings = {"gate_together": args.gate_together, "flow_weight": args.flow_weight}
    train.main(rest, step, settings, partial(prepare, args))


if __name__ == "__main__":
    run_script(main, "stopped and saved; the same command goes on from here")
