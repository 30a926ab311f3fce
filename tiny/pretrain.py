"""How the tiny frozen parts were made: the VAE, the VLM, the base generator (`python train.py --stage vae|vlm|base`).

    torchrun --nproc_per_node 2 train.py --stage vae       # the video VAE, from scratch
    torchrun --nproc_per_node 2 train.py --stage vlm       # what covers this patch, captions, thoughts, verdicts
    torchrun --nproc_per_node 2 train.py --stage base      # G and the connector: literal edits and plain generation

A stage says what is learnt and from what; the loop is train.py's `fit`, which it is given.

Left out of the paper: nothing; its parts were pretrained by others on the internet's images and text, ours are taught here.

Axis letters: B batch, N clips, K frames seen by the VLM, F frames, H W pixels, C f h w latents, T tokens, D width.
"""

import copy
import math
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from tiny import scene
from tiny import world
from tiny.tokenizer import make_tokenizer
from critic import EDITED, SOURCE, SYSTEM, THINK, VERDICT, Critic, clean_estimate, follow, opening, pairs
from common.distributed import RANK, WORLD_SIZE, first_rank_first
from common.files import BadInput, replacing
from data import batch_indices, draws
from common.video import from_bytes, to_bytes
from common.intervals import overall
from model import (GENERATE, PRESETS, TRAINED, UnifiedModel, add_noise, chat, flow_loss, load_model,
                   velocity_target)

DESCRIBE = "Describe the video ."


def world_tokenizer():
    """The tokenizer of all that the tiny world and its chats can say."""
    chats = [SYSTEM, GENERATE, SOURCE, EDITED, VERDICT, DESCRIBE, "system\n\nuser\n\nassistant\n\n"]
    return make_tokenizer(world.all_texts() + 50 * chats, PRESETS["tiny"].t5["vocab_size"])


def stage_vae(args, fit) -> UnifiedModel:
    """The VAE, from scratch, on clips of the tiny world."""
    torch.manual_seed(args.seed)
    model = UnifiedModel(PRESETS["tiny"])
    clips = render_pool(range(args.items), "clips")                                        # uint8 (N, 2, F, 3, H, W)
    vae, raw = model.vae, []
    for module in vae.modules():                          # the library's default gains are too small to learn from scratch
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)
    # decode() clamps, and a clamped pixel has no gradient: learn from what the decoder says before that
    hook = vae.decoder.register_forward_hook(lambda module, inputs, output: raw.append(output))

    def loss_at(step):
        g = torch.Generator().manual_seed(args.seed * 1_000_003 + step * WORLD_SIZE + RANK)
        single = step < args.steps * .2                   # single frames, which is quick, then whole clips
        n = (args.batch if single else args.batch // 2) // WORLD_SIZE
        picked = clips[torch.randint(len(clips), (n,), generator=g), torch.randint(2, (n,), generator=g)]
        if single:
            picked = picked[torch.arange(n), torch.randint(picked.shape[1], (n,), generator=g)][:, None]
        x = from_bytes(picked).transpose(1, 2)                                             # (B, 3, F, H, W)
        z = vae.encode(x).latent_dist.mode()
        noisy = z + .05 * torch.randn(z.shape, generator=g)         # a little noise makes the latents smooth
        raw.clear()
        vae.decode(noisy)
        error = torch.cat(raw, 2) - x
        loss = error.abs().mean() + error.pow(2).mean() + 1e-4 * z.pow(2).mean()
        if not single:                                    # a latent frame alone is to give the last of its four frames,
            k = 1 + step % (z.shape[2] - 1)               # so that the critic's K frames need no more than K latents
            raw.clear()
            vae.decode(noisy[:, :, k:k + 1])
            alone = raw[0] - x[:, :, 4 * k:4 * k + 1]
            loss = loss + .3 * (alone.abs().mean() + alone.pow(2).mean())
        return loss, {"psnr": 10 * math.log10(4 / error.pow(2).mean().item())}

    fit(dict(vae.named_parameters()), loss_at, args.out, steps=args.steps, lr=args.lr, clip=1.,
        weight_decay=1e-4, save_every=args.save_every, name="vae", record=args.record)
    hook.remove()
    with torch.no_grad():                                 # the DiT wants latents of mean 0 and deviation 1
        z = torch.cat([vae.encode(from_bytes(clips[i:i + 8, 1]).transpose(1, 2)).latent_dist.mode()
                       for i in range(0, min(256, len(clips)), 8)])
    vae.register_to_config(latents_mean=z.mean((0, 2, 3, 4)).tolist(), latents_std=z.std((0, 2, 3, 4)).tolist())
    return model


def _edit(index: int):
    """Source and target, and the edit in plain words; every eighth is plain generation: from nothing, by its caption."""
    t = lesson_triplet(index)
    clips, text = (t.source, t.target), t.literal
    if index % 8 == 7:
        clips, text = (torch.zeros_like(t.source), t.source), scene.caption(t.before)
    return to_bytes(torch.stack(clips)).numpy(), text


WORKERS = max(1, len(os.sched_getaffinity(0)) // WORLD_SIZE)


def _clips(index: int):
    t = world.make_triplet(index, ("rave", "icvg")[index % 2], "train")
    return torch.stack([to_bytes(t.source), to_bytes(t.target)]).numpy()


def looked_at(clip: np.ndarray) -> torch.Tensor:
    """The three frames of a stored clip that the VLM looks at: (K, 3, H, W) in [-1, 1]."""
    return from_bytes(torch.from_numpy(clip)[::4])


def lesson_triplet(index: int) -> world.Triplet:
    """The triplet that lesson number `index` is about: the subsets in turn."""
    return world.make_triplet(index // 2, ("rave", "icvg")[index % 2], "train")


def _lesson(index: int):
    """All that the VLM learns from one triplet: clips, texts, what covers each patch, wrong answers and their grades."""
    triplet = lesson_triplet(index)
    rng = np.random.default_rng([7, index])
    labels, wanted = (scene.paint(x)[1][::4, 1::2, 1::2].astype(np.uint8) for x in (triplet.before, triplet.after))
    answers = []
    for kind in rng.choice(world.MISSES, 3, replace=False, p=MISS_SHARE):
        video, seen = world.near_miss(triplet, str(kind), rng)
        answers.append((to_bytes(video[::4]).numpy(), seen, grade(world.judge(triplet, video))))
    return dict(index=index, instruction=triplet.instruction, thought=triplet.thought, literal=triplet.literal,
                caption=scene.caption(triplet.before), labels=labels, wanted=wanted,         # labels (K, 16, 16)
                source=to_bytes(triplet.source).numpy(), target=to_bytes(triplet.target).numpy(), misses=answers,
                wrong=to_bytes(video).numpy())              # the last of them, whole


MISS_SHARE = [.10, .08, .26, .28, .16, .06, .06]                          # of world.MISSES: mostly the hard ones


def grade(scores: dict) -> float:
    """The soft label of a verdict, the share of Yes whose margin is the oracle's Overall minus 7: .95 at 10, .12 at 5."""
    return 1 / (1 + math.exp(7 - overall(scores["EA"], scores.get("PC"), scores["GN"], scores["GR"])))


def together(mine: list) -> list:
    """What all ranks have made, in order: `mine` is every WORLD_SIZE-th row, from RANK on."""
    shares = [mine] * WORLD_SIZE
    if WORLD_SIZE > 1:
        dist.all_gather_object(shares, mine)
    return [shares[k % WORLD_SIZE][k // WORLD_SIZE] for k in range(sum(map(len, shares)))]


def render_pool(indices, what: str):
    """Render triplets on all cores, with a progress bar."""
    work, mine = {"clips": _clips, "lessons": _lesson, "edits": _edit}[what], indices[RANK::WORLD_SIZE]
    with ProcessPoolExecutor(WORKERS, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        done = together(list(tqdm(pool.map(work, mine, chunksize=16), total=len(mine), desc=f"rendering {what}",
                                  disable=RANK > 0)))
    return torch.from_numpy(np.stack(done)) if what == "clips" else done


def hidden_matrices(params: dict) -> set[str]:
    """The names of the matrices between embeddings and heads, which Muon trains: in half as many steps as AdamW."""
    ends = ("embed", "position", "shared", "relative", "boundary", "lm_head", "proj_out", "eye.", "mind.")
    return {k for k, p in params.items() if p.ndim == 2 and not any(end in k for end in ends)}


def by_cell(labels: torch.Tensor) -> torch.Tensor:
    """Labels of points (..., S, S) -> (..., (S/2)^2, 4): the four points of each cell, cells in reading order."""
    return labels.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).transpose(-3, -2).flatten(-2).flatten(-3, -2)


def teach(vlm, rows: list[list[tuple]], answers: torch.Tensor) -> tuple:
    """Next-token loss on the parts of rows that are to be learnt, and the loss of the verdicts, with soft labels.

    rows: lists of (text or vision tokens, role): "learn", "verdict" (the one token Yes or No), "asked" (pairs that are asked
    the dense questions) or "given". answers: (B,) share of Yes, NaN where a row has no verdict. Returns text loss, verdict
    loss, margin (B,) and, of the pairs that are asked, what was there after the first layer, (B', T, D), what should be there,
    three layers below the last, and what is there, one below it: two layers to compare, and the verdict can read them.
    """
    embeddings, mask = vlm.join([[part for part, _ in row] for row in rows])
    labels, at, asked = torch.full(mask.shape, -100), torch.full((len(rows),), -1), []
    for r, row in enumerate(rows):
        ids = [vlm.tokenizer(part, add_special_tokens=False).input_ids if isinstance(part, str) else [0] * len(part)
               for part, _ in row]
        position = mask.shape[1] - sum(map(len, ids))
        for part, (_, role) in zip(ids, row):
            if role == "learn":
                labels[r, position:position + len(part)] = torch.tensor(part)
            if role == "verdict":
                at[r] = position - 1                      # the position that says it
            if role == "asked":
                asked.append((r, position, position + len(part)))
            position += len(part)
    out = vlm.read(embeddings, mask, hidden=True)
    text = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    yes, no = vlm.tokenizer.convert_tokens_to_ids(["Yes", "No"])
    said, has, y = out.logits[torch.arange(len(rows)), at].log_softmax(-1), ~answers.isnan(), answers.nan_to_num()
    verdict = (-(y * said[:, yes] + (1 - y) * said[:, no]) * has).sum() / has.sum().clamp_min(1)
    hidden = [[out.hidden_states[layer][r, start + k:end:2] for r, start, end in asked]
              for layer, k in ((1, 0), (-4, 0), (-2, 1))]
    return text, verdict, said[:, yes] - said[:, no], *hidden


def model_with_vae(args) -> UnifiedModel:
    """The tiny preset, random but for the VAE, which comes from --weights; with a tokenizer."""
    home = Path(args.weights or "out/vae/model") / "vae"
    if not (home / "config.json").is_file():
        raise BadInput(f"--weights: there is no VAE in {home}; make one with --stage vae, or name the folder that has it")
    torch.manual_seed(args.seed)
    model = UnifiedModel(PRESETS["tiny"]).requires_grad_(False)
    model.vae = AutoencoderKLWan.from_pretrained(home, torch_dtype=torch.float32).requires_grad_(False)
    model.vlm.tokenizer = model.text_tokenizer = world_tokenizer()
    return model


def stage_vlm(args, fit) -> UnifiedModel:
    """The VLM, from scratch: a twentieth of the steps for the eyes (what covers this patch?), a tenth for the words
    (captions, chains of thought), then verdicts, in the last two fifths also on what it will have to judge, the decoded
    one-step estimates and edits of a half-trained generator, with the oracle's grade.

    A verdict is one bit, too little to learn to compare from: beside it, each token of the source, once the thought is
    known, is asked what should be there, and each of the edit whether it is. Without that the model learns the words and
    says Yes to all. Answers come in twos, to the same instruction: what tells them apart is only whether it is done.
    """
    finished = args.stage == "harden"                     # only the fifth lesson, to a VLM that has had the other four
    model = load_model(args.weights, "tiny").requires_grad_(False) if finished else model_with_vae(args)
    vlm, points = model.vlm, len(scene.LABELS)
    generator = copy.deepcopy(model)                      # the one-step estimates are its own
    lessons = render_pool(range(args.items), "lessons")
    estimates = []                                        # (lesson, its answers), an answer is (K frames, seen, grade)
    eye = nn.Linear(vlm.vision_tower.config.hidden_size, 4 * points)                       # what covers 4 points of a patch?
    mind = nn.Linear(vlm.llm.config.hidden_size, 4 * points + 4)                           # what should? is it another?
    vlm.requires_grad_(True)
    params = {f"{name}.{k}": p for name, part in (("vlm", vlm), ("eye", eye), ("mind", mind))
              for k, p in part.named_parameters()}
    words_from, verdicts_from, estimates_from = (args.steps * k // 100 for k in (5, 16, 60))
    logged = ("patches_right", "text_loss", "expected_right", "wrong_loss", "verdict_loss", "yes_right", "no_right",
              "order_right")

    def covers(frames, labels):
        """Does the eye tell what covers each point? (N, 3, H, W), (N, 16, 16) -> loss, share of points that are right."""
        labels = by_cell(labels).long()                                                    # (N, 64, 4)
        guess = eye(vlm.patches(frames)).view(*labels.shape, points)
        return F.cross_entropy(guess.flatten(0, 2), labels.flatten()), (guess.argmax(-1) == labels).float().mean()

    def halves(loss, share):
        """Of each row as much where share (B, ...) is 1 as where it is 0: a small thing counts as much as the whole sky."""
        loss, share = loss.flatten(1), share.flatten(1)
        return sum(((loss * w).sum(1) / w.sum(1).clamp_min(1)).mean() for w in (share, 1 - share)) / 2

    def expects(first, late, lessons):
        """At each token of the source: what is there? And later, once the thought is known: what should be in the edit?

        One head is asked both, so that they speak one language and can be compared. first, late: (B, K*16, D). Returns
        the loss, and the share of right guesses where the edit is to change something.
        """
        before, after = (by_cell(torch.from_numpy(np.stack([x[key] for x in lessons]))[..., 1::2, 1::2]).flatten(1, 2).long()
                         for key in ("labels", "wanted"))                                  # (B, K*16, 4)
        is_there, should_be = (mind(h)[..., 4:].unflatten(-1, (4, points)) for h in (first, late))
        loss = F.cross_entropy(should_be.flatten(0, 2), after.flatten(), reduction="none").view(after.shape)
        loss = halves(loss, (before != after).float()) + F.cross_entropy(is_there.flatten(0, 2), before.flatten())
        return loss, (should_be.argmax(-1) == after)[before != after].float().mean()

    def compares(hidden, frames, lessons):
        """At each quarter of an edit's tokens: is it another than it should be? hidden (B, K*16, D), frames (B, K, 3, H, W)."""
        target = torch.stack([looked_at(x["target"]) for x in lessons])
        far = F.avg_pool2d((frames - target).flatten(0, 1), 2).abs().amax(1, keepdim=True)
        far = by_cell(F.avg_pool2d(far, 2)[:, 0]).view(*hidden.shape[:2], 4)               # (B, K*16, 4)
        wrong = ((far - .05) / .15).clamp(0, 1)
        return halves(F.binary_cross_entropy_with_logits(mind(hidden)[..., :4], wrong, reduction="none"), wrong)

    def words(some, rng):
        """Captions and chains of thought: the loss of their tokens."""
        source, rows = vlm.see(torch.stack([looked_at(x["source"]) for x in some])), []
        for x, seen in zip(some, source):
            said = x["instruction" if rng.random() < .8 else "literal"]
            thought = [*((part, "given") for part in opening(seen, said)), (f"{x['thought']} .<|eot_id|>", "learn")]
            rows += [caption_row(seen, x), thought]
        return teach(vlm, rows, torch.full((len(rows),), math.nan))[0]

    def two_answers(x, rng):
        """Of lesson x (or another): it, and two answers to it, a right and a wrong one or two of the draft's."""
        if estimates and rng.random() < .4:
            x, made = estimates[int(rng.integers(len(estimates)))]
            answers = [made[int(k)] for k in rng.choice(len(made), 2, replace=False)]
        else:
            answers = [(x["target"][::4], x["literal"], .95), x["misses"][int(rng.integers(3))]]
        for frames, seen, y in answers:
            frames = from_bytes(torch.from_numpy(frames))
            if rng.random() < .3:                         # a little grain alone is no reason for No
                frames = frames + .05 * rng.random() * torch.from_numpy(rng.normal(size=frames.shape).astype(np.float32))
            yield x, frames, seen, y

    def verdicts(some, rng, please=False):
        """Is it done, and what has been done? The losses of texts, verdicts and the dense questions."""
        asked = some[::2]
        n_as_before = round(.375 * len(asked)) if please else len(asked)
        shown = [answer for x in asked[:n_as_before] for answer in two_answers(x, rng)]
        if please:
            shown += pleasing_answers(model, generator, asked[n_as_before:], rng)
        frames = torch.stack([frames for _, frames, _, _ in shown])
        source, edited = vlm.see(torch.stack([looked_at(x["source"]) for x, *_ in shown[::2]])), vlm.see(frames)
        rows, dense = [], []                              # the dense questions are asked where the thought comes first
        for i, (x, _, seen, y) in enumerate(shown):
            if i % 2 == 0:
                think = str(rng.choice(THINK, p=(.8, .1, .1))) if i else "expect"
                said = x["instruction" if rng.random() < .8 else "literal"]
            dense += [i] * (think == "expect")
            rows.append(verdict_row(think, source[i // 2], edited[i], said, x["thought"], seen, y))
        answers = torch.tensor([y for *_, y in shown])
        text, verdict, margin, *hidden = teach(vlm, rows, answers)
        asked = [shown[i][0] for i in dense]
        first, late, now = map(torch.stack, hidden)
        (expect, right), wrong = expects(first, late, asked), compares(now, frames[dense], asked)
        better = (answers[0::2] - answers[1::2]).where(abs(answers[0::2] - answers[1::2]) > .2, torch.zeros(()))
        ahead = (margin[0::2] - margin[1::2]) * better.sign()              # of the better of two answers, where one is
        order = F.softplus(-ahead[better != 0]).sum() / len(ahead)
        yes, no = (margin[answers > .7] > 0).float().mean(), (margin[answers < .3] < 0).float().mean()
        in_order = (ahead[better != 0] > 0).float().mean()
        return text + 2 * (verdict + order + expect + wrong), [text, right, wrong, verdict, yes, no, in_order]

    def loss_at(step):
        rng = np.random.default_rng([args.seed, step, RANK])
        some = [lessons[i] for i in rng.integers(len(lessons), size=args.batch // WORLD_SIZE)]
        k = 0 if step < words_from else int(rng.integers(3))
        part = slice(k, 3 if step < words_from else k + 1)                                # all three frames, then one
        eyes, right = covers(torch.cat([looked_at(x["source"])[part] for x in some[:8]]),
                             torch.cat([torch.from_numpy(x["labels"])[part] for x in some[:8]]))
        if step < words_from:
            loss, told = eyes, [right]
        elif step < verdicts_from:
            text = words(some, rng)
            loss, told = .3 * eyes + text, [right, text]
        else:
            if step >= estimates_from and not estimates:
                estimates.extend(draft_estimates(lessons, args, fit))
            judged, told = verdicts(some, rng)
            loss, told = .3 * eyes + judged, [right, *told]
        told = [x.item() for x in told]
        return loss, dict(zip(logged, told + [math.nan] * (len(logged) - len(told))))

    def fifth_lesson(step):
        rng = np.random.default_rng([args.seed, 5, HEAD_STEPS + step, RANK])
        some = [lessons[i] for i in rng.integers(len(lessons), size=args.batch // WORLD_SIZE)]
        k = int(rng.integers(3))
        eyes, right = covers(torch.cat([looked_at(x["source"])[k:k + 1] for x in some[:8]]),
                             torch.cat([torch.from_numpy(x["labels"])[k:k + 1] for x in some[:8]]))
        judged, told = verdicts(some, rng, please=step >= 0)
        return .3 * eyes + judged, dict(zip(logged, [x.item() for x in (right, *told)]))

    if finished:                                          # the heads of the dense questions are not kept with a VLM
        heads = {k: p for k, p in params.items() if not k.startswith("vlm.")}
        vlm.requires_grad_(False)
        fit(heads, lambda step: fifth_lesson(step - HEAD_STEPS), args.out / "heads", steps=HEAD_STEPS, lr=1e-2, clip=1.,
            weight_decay=0., name="heads")
        vlm.requires_grad_(True)
        fit(params, fifth_lesson, args.out, steps=args.steps, lr=args.lr, clip=1., weight_decay=.01, ema=.99,
            save_every=args.save_every, name="harden", record=args.record, muon=hidden_matrices(params))
        return model
    fit(params, loss_at, args.out, steps=args.steps, lr=args.lr, clip=1., weight_decay=.01,
        save_every=args.save_every, name="vlm", record=args.record, muon=hidden_matrices(params))
    return model


# ------------------------------------------------------------------- the fifth lesson: what would please the critic?

HEAD_STEPS = 200                                         # the dense questions' heads alone, before the fifth lesson
FARTHEST = .7                                            # RMS of the longest way, in deviations of a latent


@torch.no_grad()
def one_step_estimates(generator, lessons, latents, t, noise):
    """What `generator` makes of noised answers in one step (Eq. 3). latents, noise (B, C, f, h, w), t (B,)."""
    source = torch.stack([from_bytes(torch.from_numpy(x["source"])) for x in lessons])
    words = [x["instruction"] for x in lessons]
    visual = generator.encode_video(source)
    c = generator.context(visual, generator.bridge(generator.encode_vlm(source, words)), generator.encode_text(words))
    x_t = add_noise(latents, noise, t)
    return clean_estimate(x_t, generator.velocity(x_t, t, c, visual), t)


def pleasing_answers(model, generator, lessons, rng):
    """Two answers to each lesson, moved in latent space to please the critic, and graded afresh by the oracle.

    They begin as the target and a near miss, half of them as one-step estimates of `generator` of these. The target is
    also moved to displease. Returns (lesson, frames (K, 3, H, W), "", grade), as the other answers are told.
    """
    rows = [x for x in lessons for _ in range(2)]
    clips = [from_bytes(torch.from_numpy(x[key])) for x in lessons for key in ("target", "wrong")]
    n = len(rows)
    with torch.no_grad():
        latents = model.encode_video(torch.stack(clips))
    estimated = rng.random(n) < .5
    if estimated.any():
        t = torch.from_numpy(rng.random(estimated.sum()) * .85 + .02).float()
        noise = torch.from_numpy(rng.normal(size=(len(t), *latents.shape[1:]))).float()
        latents[estimated] = one_step_estimates(generator, [x for x, e in zip(rows, estimated) if e],
                                                latents[estimated], t, noise)
    of_targets = float(rng.choice([-1, 1]))               # the right answers of a step are moved up or down the margin
    way = torch.tensor([of_targets, 1.] * len(lessons))
    rms = torch.from_numpy(rng.random(n) * FARTHEST).float()
    way, rms = way.view(-1, 1, 1, 1, 1), rms.view(-1, 1, 1, 1, 1)
    critic = Critic(model)
    source = torch.stack([looked_at(x["source"]) for x in rows])
    instructions, thoughts = [x["instruction"] for x in rows], [x["thought"] for x in rows]

    def margin_of(frames):
        return critic.margin(source, frames, instructions, thoughts)
    with torch.autocast("cpu", torch.bfloat16):           # a direction needs no more
        latents = follow(critic, latents, margin_of, steps=int(rng.integers(1, 4)), size=way * rms).float()
    with torch.no_grad():
        videos, frames = model.decode_video(latents), critic.decode(latents)
    grades = [grade(world.judge(lesson_triplet(x["index"]), video)) for x, video in zip(rows, videos)]
    return [(x, shown, "", y) for x, shown, y in zip(rows, frames, grades)]


def caption_row(seen, lesson):
    """One training row: describe the source."""
    return [*((part, "given") for part in chat(SYSTEM, [seen, DESCRIBE])), (lesson["caption"] + "<|eot_id|>", "learn")]


def verdict_row(think, source, edited, instruction, thought, seen, y):
    """One training row of the critic's chat, in the form that `critic.Critic` asks in; what was seen is told, too:
    before the verdict in "full", after it in the others, where the verdict cannot read it but the eyes learn from it."""
    turn, eot = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"
    *asked, tail = opening(source, instruction)
    shown = pairs(source, edited)
    asked, word = [(part, "given") for part in asked], ("Yes" if y > .5 else "No", "verdict")
    told = [(f" , {seen}{eot}", "learn")] if seen else []
    if think == "full" and seen:
        return [*asked, (EDITED, "given"), (shown, "given"), (turn, "given"), (f"{thought} . {seen} . ", "learn"),
                (VERDICT, "learn"), word]
    if think == "expect":
        return [*asked, (tail, "given"), (f"{thought} .{eot}", "learn"),
                (f"<|start_header_id|>user<|end_header_id|>\n\n{EDITED}", "given"), (shown, "asked"),
                (turn + VERDICT, "given"), word, *told]
    return [*asked, (EDITED, "given"), (shown, "given"), (turn + VERDICT, "given"), word, *told]


def draft_estimates(lessons, args, fit) -> list[tuple]:
    """What a half-trained generator makes: one-step estimates at every t and finished edits, (lesson, [answer, ...]).

    Its own VLM is untrained; it is thrown away afterwards. Estimates start from noised targets and, just as often, from
    noised wrong answers: at small t, x_t itself shows what it was made of.
    """
    file = args.out / "estimates.safetensors"
    if not file.exists():
        draft, some = model_with_vae(args), lessons[:args.draft_items]
        clips = [[from_bytes(torch.from_numpy(x)) for x in column]
                 for column in zip(*((x["source"], x["target"], x["wrong"]) for x in some))]
        source, target, wrong = (encode_all(draft, column, "encoding clips") for column in clips)
        words = [x["instruction"] for x in some]
        h = read_all(draft, clips[0], words)
        fit(new_generator(draft, args.seed), plain_flow(draft, source, target, h, words, args.batch, args.seed, 0.),
            args.out / "draft", steps=args.draft_steps, lr=1e-3, clip=1., weight_decay=1e-4, name="draft")
        with first_rank_first():
            if not file.exists():
                write_estimates(file, draft, some, torch.stack(clips[0]), (source, target, wrong), h, args.seed)
    held, made = load_file(file), {}
    for which, frames, y in zip(held["which"].tolist(), held["frames"].numpy(), held["grades"].tolist()):
        made.setdefault(which, []).append((frames, "", y))
    return [(lessons[which], answers) for which, answers in made.items()]


@torch.no_grad()
def write_estimates(file, draft, lessons, videos, latents, h, seed):
    """Make, judge and keep the draft's estimates and edits of `lessons`; latents of source, target and a wrong answer."""
    which, frames, grades, g = [], [], [], torch.Generator().manual_seed(seed)

    def keep(rows, made):
        for i, video in zip(rows, made):
            triplet = lesson_triplet(lessons[i]["index"])
            which.append(i), frames.append(to_bytes(video[::4])), grades.append(grade(world.judge(triplet, video)))

    for i in tqdm(range(0, len(lessons), 8), desc="estimates", disable=RANK > 0):
        rows = list(range(i, min(i + 8, len(lessons))))
        source, *starts = (x[rows] for x in latents)
        words = [lessons[k]["instruction"] for k in rows]
        c = draft.context(source, draft.bridge([h[k] for k in rows]), draft.encode_text(words))
        for x0 in starts:
            t = torch.rand(len(rows), generator=g) * .85 + .02
            x_t = add_noise(x0, torch.randn(x0.shape, generator=g), t)
            keep(rows, draft.decode_video(clean_estimate(x_t, draft.velocity(x_t, t, c, source), t)))
            if i % 3 == 0:
                keep(rows, draft.decode_video(x0))        # the decoder's own blur
        if i % 4 == 0:
            keep(rows, draft.sample(videos[rows], words, steps=8, guidance=0, seed=i))     # finished edits
    with replacing(file) as temporary:
        save_file({"which": torch.tensor(which), "frames": torch.stack(frames), "grades": torch.tensor(grades)}, temporary)


def read_all(model, videos: list[torch.Tensor], words: list[str]) -> list[torch.Tensor]:
    """h = U(V_src, I) of all rows."""
    videos, words = videos[RANK::WORLD_SIZE], words[RANK::WORLD_SIZE]
    return together([row for i in tqdm(range(0, len(videos), 16), desc="reading", disable=RANK > 0)
                     for row in model.encode_vlm(torch.stack(videos[i:i + 16]), words[i:i + 16])])


def encode_all(model, videos: list[torch.Tensor], title: str) -> torch.Tensor:
    """Latents of all clips."""
    videos = videos[RANK::WORLD_SIZE]
    return torch.stack(together([row for i in tqdm(range(0, len(videos), 8), desc=title, disable=RANK > 0)
                                 for row in model.encode_video(torch.stack(videos[i:i + 8]))]))


GENERATOR = (*TRAINED, "ar_head", "adapter", "boundary", "text_encoder")   # all but the first two freeze after the base stage


def new_generator(model, seed: int) -> dict[str, nn.Parameter]:
    """Give `model` a new G and connector, random from `seed`; returns their parameters."""
    torch.manual_seed(seed)
    fresh = UnifiedModel(PRESETS["tiny"])
    for part in GENERATOR:
        setattr(model, part, getattr(fresh, part))
    return old_generator(model)


def old_generator(model) -> dict[str, nn.Parameter]:
    """The parameters of the model's own G and connector."""
    return {f"{part}.{k}": p.requires_grad_(True) for part in GENERATOR for k, p in getattr(model, part).named_parameters()}


def plain_flow(model, source, target, h, words, batch, seed, drop):
    """loss_at(step) of flow matching with T5 and connector in training."""
    nothing = model.unconditional()[0]

    def loss_at(step):
        picked = batch_indices(len(source), batch, step, seed)[RANK::WORLD_SIZE]
        t, noise, u = (x[RANK::WORLD_SIZE] for x in draws(step, seed, batch, model.preset.latent_shape, 3.0))
        dropped = (u < drop).tolist()
        text = model.encode_text(["<pad>" if d else words[i] for i, d in zip(picked, dropped)])
        bridged = model.bridge([nothing if d else h[i] for i, d in zip(picked, dropped)])
        x_t = add_noise(target[picked], noise, t)
        v = model.velocity(x_t, t, model.context(source[picked], bridged, text), source[picked])
        return flow_loss(v, velocity_target(target[picked], noise)).mean(), {}
    return loss_at


def stage_base(args, fit) -> UnifiedModel:
    """The base generator and connector: literal edits and plain generation, nothing implicit (the paper's baseline).

    Stage adapt goes on with those of --weights, whose VLM has changed since: the connector reads the VLM's states.
    """
    model = load_model(args.weights or "out/vlm/model", "tiny").requires_grad_(False)
    params = old_generator(model) if args.stage == "adapt" else new_generator(model, args.seed)
    clips, words = zip(*render_pool(range(args.items), "edits"))
    sources, targets = ([from_bytes(torch.from_numpy(x[k])) for x in clips] for k in (0, 1))
    h = read_all(model, sources, words)
    source, target = encode_all(model, sources, "encoding sources"), encode_all(model, targets, "encoding targets")
    fit(params, plain_flow(model, source, target, h, words, args.batch, args.seed, args.drop), args.out,
        steps=args.steps, lr=args.lr, clip=1., weight_decay=1e-4, save_every=args.save_every, name="base",
        record=args.record, muon=hidden_matrices(params))
    return model


STAGES = {"vae": stage_vae, "vlm": stage_vlm, "harden": stage_vlm, "base": stage_base, "adapt": stage_base}
