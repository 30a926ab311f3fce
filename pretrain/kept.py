r"""The VLM's sixth lesson: is the rest kept? For a VLM after harden.py.

    python -m pretrain.kept --editors out/sft-100 out/own-100           # an hour on one core
    python train.py --items 100 --pairs 4000 --critic out/kept/model --kept 1 --lambda 0.1

The verdict's label is the oracle's Overall, of EA and PC the smaller one: where an edit does not do
what it should, nothing tells the VLM what else it spoils. A generator that is asked only that
question learns to edit, and smears. So the VLM is asked a second one, critic.KEPT, whose label is
PC alone, and both about what fine-tuned models make of the lessons' sources by themselves: runs of
train.py with and without own edits, which smear more and less.

Axis letters: B answers, N lessons, E editors, K frames that the VLM sees, C f h w latents.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from common.checkpoint import read_vlm
from common.files import BadInput, replacing, run_script
from common.video import from_bytes, to_bytes
from critic import KEPT, Critic, clean_estimate
from model import UnifiedModel, load_model, rollout
from pretrain import stage
from pretrain.chats import teach, verdict_row
from pretrain.draft import condition
from pretrain.heads import Heads, compares
from pretrain.lessons import (grade, grade_of_rest, render_lessons, training_triplet, vlm_frames,
                              vlm_lesson)
from pretrain.vlm import Shown, judge_answers, order, two_answers
from vlm import VILA

HEAD_STEPS = 60                                     # the heads of the dense questions alone, before


def kept_step(vlm: VILA, heads: Heads, lessons: list[dict], edits: dict, number: int,
              args) -> tuple[torch.Tensor, dict]:
    """Both questions, about two of the world's own answers and two edits to each of some lessons:
    loss, what to log."""
    rng = np.random.default_rng([args.seed, 6, number])
    shown = []
    for i in rng.integers(len(lessons), size=args.batch // 4):
        shown += two_answers(lessons[i], [], rng)
    for i in rng.integers(len(lessons), size=args.batch // 2):
        for editor in rng.choice(edits["grades"].shape[1], 2, replace=False):
            yes, kept = edits["grades"][i, editor].tolist()
            shown.append(Shown(lessons[i], from_bytes(edits["frames"][i, editor]), "", yes, kept))
    loss, log = judge_answers(vlm, heads, shown, rng)
    kept_loss, more = judge_the_rest(vlm, heads, shown)
    return loss + kept_loss, log | more


def judge_the_rest(vlm: VILA, heads: Heads, shown: list[Shown]) -> tuple[torch.Tensor, dict]:
    """Is the rest kept? shown: pairs of answers, each to one lesson, one after the other."""
    lessons = [answer.lesson for answer in shown]
    frames = torch.stack([answer.frames for answer in shown])                      # (B, K, 3, H, W)
    source = vlm.see(torch.stack([vlm_frames(lesson["source"]) for lesson in lessons[::2]]))
    edited = vlm.see(frames)                                                             # (B, T, D)
    rows = [verdict_row("expect", source[i // 2], edited[i], lesson["instruction"],
                        lesson["thought"], "", shown[i].kept, KEPT)
            for i, lesson in enumerate(lessons)]
    kept = torch.tensor([answer.kept for answer in shown])                               # (B,)
    taught = teach(vlm, rows, kept)
    order_loss, order_right = order(taught.margin, kept)
    wrong_loss = compares(heads, taught.found, frames, lessons)
    log = {"kept_loss": taught.verdict_loss.item(), "kept_order_right": order_right.item()}
    return 2 * (taught.verdict_loss + order_loss + wrong_loss), log


# -------------------------------------------------------------- what fine-tuned models make of them

def edits_of(editors: list[Path], lessons: list[dict], args) -> dict[str, torch.Tensor]:
    """Each editor's answer to each lesson, as the critic is shown own edits in training; made once,
    and kept in the run's folder.

    "frames" (N, E, K, 3, H, W), bytes; "grades" (N, E, 2): the soft labels of the two questions.
    """
    file = args.out / "edits.safetensors"
    if not file.exists():
        models = [load_model(editor, "tiny") for editor in editors]
        frames, grades = [], []
        for first in tqdm(range(0, len(lessons), 16), desc="edits"):
            some = lessons[first:first + 16]
            answers = [answer(model, some, args.seed + first) for model in models]
            frames.append(torch.stack([shown for shown, _ in answers], 1))
            grades.append(torch.stack([values for _, values in answers], 1))
        with replacing(file) as temporary:
            save_file({"frames": torch.cat(frames), "grades": torch.cat(grades)}, temporary)
    return load_file(file)


@torch.no_grad()
def answer(model: UnifiedModel, lessons: list[dict],
           seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames (N, K, 3, H, W), bytes, of one-step estimates at the end of rollouts to random t, a
    quarter of them to its end; and their grades (N, 2)."""
    generator = torch.Generator().manual_seed(seed)
    t = .55 * torch.rand(len(lessons), generator=generator)
    t = torch.where(torch.rand(len(lessons), generator=generator) < .25, 0., t).clamp_min(1e-3)
    source, c = condition(model, lessons)
    x_t = rollout(model, torch.randn(source.shape, generator=generator), t, c, source)
    x0_hat = clean_estimate(x_t, model.velocity(x_t, t, c, source), t)
    triplets = [training_triplet(lesson["index"]) for lesson in lessons]
    grades = [[grade(triplet, video), grade_of_rest(triplet, video)]
              for triplet, video in zip(triplets, model.decode_video(x0_hat))]
    return to_bytes(Critic(model).decode(x0_hat)), torch.tensor(grades)


# ---------------------------------------------------------------------------------------- the stage

def main(argv=None) -> None:
    parser = stage.flags("Teach the tiny VLM a second question: its sixth lesson.",
                         steps=900, batch=8, lr=5e-4, items=2400, out="out/kept")
    parser.add_argument("--weights", type=Path, default=Path("weights/tiny"), help="a whole model")
    parser.add_argument("--critic", type=Path, default=Path("weights/hardened"),
                        help="the VLM that is taught")
    parser.add_argument("--editors", type=Path, nargs="+", required=True, metavar="RUN",
                        help="two or more runs of train.py, whose edits are judged")
    args = stage.begin(parser, argv, samples_apart=4)
    if len(args.editors) < 2:
        raise BadInput(f"--editors {args.editors[0]}: two edits of a lesson are compared; "
                       f"name another run")
    model = load_model(args.weights, "tiny").requires_grad_(False)
    model.vlm = read_vlm(model, args.critic)
    torch.manual_seed(args.seed)
    heads = Heads(model.vlm)                             # they are not kept with a VLM
    lessons = render_lessons(vlm_lesson, args.items)
    stage.claim(args)
    edits = edits_of(args.editors, lessons, args)

    run = stage.run_of_heads(heads, args)
    for step in run.steps(HEAD_STEPS):
        run.update(*kept_step(model.vlm, heads, lessons, edits, step, args))
    run.write_log()

    model.vlm.requires_grad_(True)
    run = stage.run_of_vlm(model.vlm, heads, args, "kept", ema=.99)
    for step in run.steps(args.steps):
        # -------------------------------------------------------------------- one training step
        loss, log = kept_step(model.vlm, heads, lessons, edits, HEAD_STEPS + step, args)
        run.update(loss, log)
        # ---------------------------------------------------------------------------------------
    stage.end(model, args, run)


if __name__ == "__main__":
    run_script(main, stage.STOPPED)
