"""What the pretraining scripts share: their flags, their run folder, their optimizers.

A stage is a script with one loop, as train.py is: vae.py, vlm.py, base.py, harden.py.
"""

import sys
from collections.abc import Collection
from pathlib import Path

import torch
import torch.nn as nn

from common.distributed import WORLD_SIZE, is_first_rank, start, stop
from common.files import BadInput, Parser, at_least_0, between, check_writable, positive
from common.run import Run, check_run, claim_folder, plain_settings
from common.weights import read_part
from model import UnifiedModel
from presets import PRESETS
from pretrain.chats import world_tokenizer

STOPPED = "stopped and saved; the same command goes on from here"
FREE = ("out", "save_every", "argv")                     # flags that may differ when a run goes on


def flags(description: str, *, steps: int, batch: int, lr: float, items: int, out: str) -> Parser:
    """The flags that all stages have, with a stage's own defaults."""
    parser = Parser(description=description)
    add = parser.add_argument
    add("--items", type=positive, default=items, help="how many tiny-world triplets to train on")
    add("--steps", type=positive, default=steps, help="training steps")
    add("--batch", type=positive, default=batch, help="samples a step, over all ranks")
    add("--lr", type=between(0, 1, True), default=lr, help="peak learning rate")
    add("--seed", type=at_least_0, default=0, help="of everything random")
    add("--out", type=Path, default=Path(out), help="run folder; a run that was stopped goes on")
    add("--save-every", type=positive, default=100, help="steps between checkpoints")
    return parser


def begin(parser: Parser, argv: list[str] | None):
    """Parse the flags, and join the other ranks. Raises BadInput for what cannot be used."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parser.parse_args(argv)
    args.argv = argv
    if args.batch % WORLD_SIZE:
        raise BadInput(f"--batch {args.batch}: pass a multiple of {WORLD_SIZE}, the ranks' number")
    check_run(args.out, plain_settings(args, FREE))
    check_writable(args.out / "run.json")
    start()
    return args


def claim(args) -> None:
    """From here on the run folder is this run's. For when all is loaded and rendered."""
    claim_folder(args.out, args.argv, plain_settings(args, FREE))


def end(model: UnifiedModel, args, run, parts: tuple[str, ...] | None = None) -> None:
    """Save the model (or some parts of it) in half precision, and leave the other ranks."""
    if is_first_rank():
        model.eval().save_pretrained(args.out / "model", dtype=torch.float16, parts=parts)
        print(f"wrote {args.out / 'model'}")
    run.write_log()
    stop()


def model_with_vae(weights: Path, seed: int) -> UnifiedModel:
    """The tiny preset, frozen, random but for the VAE of `weights`, and with its tokenizers. Raises
    FileNotFoundError or ValueError where the VAE is missing or does not fit."""
    torch.manual_seed(seed)
    model = UnifiedModel(PRESETS["tiny"]).requires_grad_(False)
    model.vae = read_part(weights / "vae", model.vae, torch.float32).requires_grad_(False)
    model.vlm.tokenizer = model.text_tokenizer = world_tokenizer()
    return model


def optimizers(params: dict[str, nn.Parameter], lr: float, weight_decay: float,
               muon: Collection[str] = ()) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for what `muon` names; its steps are scaled to the size of AdamW's."""
    rest = [p for name, p in params.items() if name not in muon]
    both = [torch.optim.AdamW(rest, lr=lr, betas=(.9, .95), weight_decay=weight_decay)]
    if muon:
        matrices = [p for name, p in params.items() if name in muon]
        both.append(torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay,
                                     adjust_lr_fn="match_rms_adamw"))
    return both


def run_of_vlm(vlm: nn.Module, heads: nn.Module, args, name: str, ema: float = 0.) -> Run:
    """The run that trains a VLM and the heads of its dense questions."""
    params = {f"vlm.{key}": p for key, p in vlm.named_parameters()}
    params |= dict(heads.named_parameters())
    both = optimizers(params, args.lr, .01, muon=hidden_matrices(params))
    return Run(args.out, params, both, ema=ema, save_every=args.save_every, name=name)


def hidden_matrices(params: dict[str, nn.Parameter]) -> set[str]:
    """The matrices between embeddings and heads, which Muon trains in half as many steps."""
    ends = ("embed", "position", "shared", "relative", "boundary",           # embeddings,
            "lm_head", "proj_out", "eye.", "mind.")                          # and heads
    return {name for name, p in params.items()
            if p.ndim == 2 and not any(end in name for end in ends)}
