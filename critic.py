"""The self-reflective critic: how a frozen VLM gives a gradient to a video generator (Sec. 4.2).

    python evaluate.py --critic                  # is it right, and what do its choices do to the gradient?

Eq. 3   x0_hat = x_t - t v_theta(x_t, t, c)                      clean_estimate
gate    only samples with t < tau are shown to the critic        gate
decode  K frames of x0_hat through the frozen VAE decoder        decode_frames
margin  m(V_src, V, I) = z_yes - z_no at the verdict             Critic.margin
Eq. 4   L_reason = -log sigmoid(m - m_0), m_0 = m(V_src, V_src, I)     reason_loss
Eq. 5   L = L_FM + lambda * mean of L_reason over gated samples  uso_loss

The gradient's way: logits -> Llama -> projector -> SigLIP -> pixels -> VAE decoder -> x0_hat -> DiT. Nothing on it is
trained, and everything on it is differentiable.

The chain of thought is a choice of three (`think`), because of what it does to the gradient (see README):
    "full"    as in the paper: V_src, V and I are seen, a thought about both is written, then the verdict
    "expect"  V_src and I are seen, what should happen is written, then V is seen, then the verdict (our default)
    "none"    the verdict at once

Axis letters: B batch, K frames that are looked at, F frames, C f h w latents, T tokens, D width.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from transformers import DynamicCache

from common.files import BadInput
from model import UnifiedModel, chat

SYSTEM = ("Judge the edit : accuracy , it does what the instruction implies ; preservation , the rest is kept ; "
          "naturalness , it moves smoothly ; realism , no noise . Say Yes only if all four hold , else No .")
SOURCE, EDITED, VERDICT = "Source :", "Edited :", "Verdict : "
THINK = ("expect", "full", "none")
DECODE = ("alone", "exact")


def load_model(folder: str | None, preset: str | None = None) -> UnifiedModel:
    """The model in `folder`, of this preset if one is named; or weights/<preset>. Raises BadInput with the mend."""
    try:
        if folder is None:
            return UnifiedModel.from_preset(preset or "tiny")
        run = Path(folder) / "model"                     # a run of train.py keeps its model there
        model = UnifiedModel.from_pretrained(run if run.is_dir() else folder)
    except BadInput:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise BadInput(f"cannot load {folder or 'weights/' + (preset or 'tiny')}: {' '.join(str(error).split())[:300]}") from error
    if preset and model.preset.name != preset:
        raise BadInput(f"{folder} is a checkpoint of preset {model.preset.name!r}, not {preset!r}: "
                       f"pass --preset {model.preset.name}")
    return model


# -------------------------------------------------------------------------------------- from noise to K frames

def clean_estimate(x_t: torch.Tensor, v: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Eq. 3: x0_hat = x_t - t v. x_t, v: (B, C, f, h, w); t: (B,). One step, differentiable in v."""
    return x_t - t.view(-1, 1, 1, 1, 1) * v


def gate(t: torch.Tensor, tau: float) -> torch.Tensor:
    """Which samples the critic is asked about (Sec. 4.2.1): t < tau. t: (B,) -> bool (B,)."""
    return t < tau


def decode_frames(model: UnifiedModel, latents: torch.Tensor, how: str = "exact") -> torch.Tensor:
    """The K frames of a clip that the critic looks at: latents (B, C, f, h, w) -> (B, K, 3, H, W) in [-1, 1].

    "exact" decodes the whole clip, as the causal VAE needs, and picks K frames. "alone" picks K latent frames and
    decodes each as if it were a clip of its own: a third of the work in the tiny preset, whose VAE has learnt to do so
    (33 dB against the exact decode); another VAE is right only for the first of them (11 dB before ours had learnt it).
    Raises BadInput where "alone" is asked for more frames than there are latent ones.
    """
    if how == "exact":
        return model.vlm.pick(model.decode_video(latents))
    f, k = latents.shape[2], model.vlm.frames
    if k > f:
        raise BadInput(f"{k} frames cannot be decoded alone: a clip has {f} latent frames; decode exactly, or look at fewer")
    picked = latents[:, :, torch.linspace(0, f - 1, k).round().long()]                     # (B, C, K, h, w)
    singles = picked.transpose(1, 2).flatten(0, 1)[:, :, None]                             # (B*K, C, 1, h, w)
    return model.decode_video(singles)[:, 0].unflatten(0, (len(latents), k))


# --------------------------------------------------------------------------------------------------- the critic

def opening(seen: torch.Tensor, instruction: str) -> list:
    """How every question begins, as a row for `VILA.join`: system prompt, instruction, source tokens (T, D).

    The source comes last, so that without a thought whatever is edited follows it at the same distance.
    """
    return chat(SYSTEM, [f"{instruction}\n{SOURCE}", seen])


def pairs(source: torch.Tensor, edited: torch.Tensor) -> torch.Tensor:
    """Tokens of source and edit in turn, (T, D) both -> (2T, D): what is there comes right after what was there.

    A VLM of a few layers, taught in an hour, learns to compare neighbours, but not tokens that are fifty apart.
    """
    return torch.stack([source, edited], 1).flatten(0, 1)


@torch.no_grad()
def write(vlm, rows: list[list], limit: int) -> list[str]:
    """What the VLM writes after each of the rows (see `VILA.join`), greedily, up to its end of turn or `limit` tokens."""
    embeddings, mask = vlm.join(rows)
    cache, done, written = DynamicCache(), torch.zeros(len(rows), dtype=torch.bool, device=mask.device), []
    stop = vlm.tokenizer.convert_tokens_to_ids(["<|eot_id|>"])[0]
    for _ in range(limit):
        token = vlm.read(embeddings, mask, cache).logits[:, -1].argmax(-1)                 # (B,)
        token = torch.where(done, stop, token)
        done |= token == stop
        if done.all():
            break
        written.append(token)
        embeddings = vlm.llm.get_input_embeddings()(token[:, None])
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    if not written:
        return [""] * len(rows)
    ids = torch.stack(written, 1).tolist()
    return [vlm.tokenizer.decode(row[:row.index(stop)] if stop in row else row) for row in ids]


class Prefix(DynamicCache):
    """What the VLM has read, once `closed`, is not added to: a layer that reads on may be run twice, as `scale.lean` does."""
    closed = False

    def update(self, key_states, value_states, layer_idx, *args, **named):
        if not self.closed:
            return super().update(key_states, value_states, layer_idx, *args, **named)
        layer = self.layers[layer_idx]
        return torch.cat([layer.keys, key_states], -2), torch.cat([layer.values, value_states], -2)


class Critic:
    """Asks the model's own frozen VLM: does this edit satisfy the instruction?"""

    def __init__(self, model: UnifiedModel, think: str = "expect"):
        if think not in THINK:
            raise ValueError(f"unknown chain of thought {think!r}: choose one of {', '.join(THINK)}")
        self.vlm, self.think = model.vlm, think
        self.shown = pairs if model.preset.paired else lambda source, edited: edited
        ids = [self.vlm.tokenizer.convert_tokens_to_ids(word) for word in ("Yes", "No")]
        self.yes, self.no = ids

    def question(self, seen: torch.Tensor, instruction: str, thought: str = "") -> list:
        """The row before the edited frames: the opening, and in "expect" the thought."""
        row = opening(seen, instruction)
        if self.think == "expect":
            return [*row, f"{thought} .<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{EDITED}"]
        return [*row[:-1], EDITED]

    def verdict(self, thought: str = "") -> list[str]:
        """The texts after the edited frames, up to where Yes or No comes next; cut where training cuts them."""
        turn = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        return [turn, f"{thought} . ", VERDICT] if self.think == "full" and thought else [turn + VERDICT]

    @torch.no_grad()
    def thoughts(self, source: torch.Tensor, instructions: list[str], edited: torch.Tensor | None = None,
                 limit: int = 48) -> list[str]:
        """The chain of thought, written greedily without gradient; one text a row, "" where `think` is "none".

        source, edited: (B, F, 3, H, W) in [-1, 1]; "expect" needs no `edited`, so its thoughts can be kept.
        """
        if self.think == "none":
            return [""] * len(instructions)
        seen = self.vlm.see(source)
        rows = [opening(*row) for row in zip(seen, instructions)]
        if self.think == "full":
            rows = [[*row[:-1], EDITED, self.shown(s, e), row[-1]] for row, s, e in zip(rows, seen, self.vlm.see(edited))]
        texts = write(self.vlm, rows, limit)
        return [text.split(VERDICT.strip())[0].strip().rstrip(".").strip() for text in texts]

    def margin(self, source: torch.Tensor, edited: torch.Tensor, instructions: list[str],
               thoughts: list[str] | None = None) -> torch.Tensor:
        """m(V_src, V, I) = z_yes - z_no at the verdict position: (B,), differentiable in `edited` (Sec. 4.2.2).

        source, edited: (B, F, 3, H, W) in [-1, 1], whole clips or the K picked frames. Everything before the edited
        frames does not depend on them: it is read once without gradient into a key-value cache.
        """
        if thoughts is None:
            thoughts = self.thoughts(source, instructions, edited.detach())
        cache = Prefix()
        with torch.no_grad():
            seen = self.vlm.see(source)
            before, mask = self.vlm.join([self.question(*row) for row in zip(seen, instructions, thoughts)])
            self.vlm.read(before, mask, cache, last=True)
            cache.closed = True
        after, after_mask = self.vlm.join([[self.shown(s, e), *self.verdict(thought)]
                                           for s, e, thought in zip(seen, self.vlm.see(edited), thoughts)])
        logits = self.vlm.read(after, torch.cat([mask, after_mask], 1), cache).logits[:, -1]    # (B, vocabulary)
        return logits[:, self.yes] - logits[:, self.no]

    @torch.no_grad()
    def baseline(self, source: torch.Tensor, instructions: list[str], thoughts: list[str] | None = None) -> torch.Tensor:
        """m_0 = m(V_src, V_src, I), without gradient: what the critic says of an edit that did nothing. (B,)"""
        return self.margin(source, source, instructions, thoughts)


# --------------------------------------------------------------------------------------------------- the losses

def reason_loss(margin: torch.Tensor, baseline: torch.Tensor) -> torch.Tensor:
    """Eq. 4: -log sigmoid(d), d = m - m_0; the cross-entropy of the answer Yes. margin, baseline: (B,) -> (B,)."""
    return -F.logsigmoid(margin - baseline.detach())


def flow_loss(v: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Eq. 2, one value a sample: mean squared error of the velocity. (B, C, f, h, w) -> (B,)."""
    return (v - target).pow(2).mean((1, 2, 3, 4))


def uso_loss(flow: torch.Tensor, reason: torch.Tensor, lam: float, gated: float | None = None) -> torch.Tensor:
    """Eq. 5: L_FM + lambda * mean over gated samples of L_reason. flow: (B,); reason: (gated,), may be empty.

    gated: how many to divide by, where it is not their number: with several ranks, the mean number over the ranks.
    """
    return flow.mean() + lam * reason.sum() / (gated or len(reason)) if len(reason) else flow.mean()


def rwr_weights(margin: torch.Tensor, baseline: torch.Tensor) -> torch.Tensor:
    """Table 4's RWR: w = 2 sigmoid(m - m_0), no gradient; w * L_FM. 1 where the edit is no better than none. (B,)"""
    return 2 * torch.sigmoid(margin - baseline).detach()
