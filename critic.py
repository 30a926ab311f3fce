"""The self-reflective critic: how a frozen VLM gives a gradient to a video generator (Sec. 4.2).

    python critic.py                             # one reflection, drawn: out/reflection.png
    python critic.py --index 3 --subset icvg --t 0.4

Eq. 3   x0_hat = x_t - t v_theta(x_t, t, c)                            clean_estimate
gate    only samples with t < tau are shown to the critic              data.gate
decode  K frames of x0_hat through the frozen VAE decoder              decode_frames
margin  m(V_src, V, I) = z_yes - z_no at the verdict                   Critic.margin
Eq. 4   L_reason = -log sigmoid(m - m_0), m_0 = m(V_src, V_src, I)     reason_loss

The gradient's way: logits -> Llama -> projector -> SigLIP -> pixels -> VAE decoder -> x0_hat ->
DiT. All of it is differentiable, and of all this only the DiT is trained.

Axis letters: B batch, G gated samples, K frames the VLM looks at, F frames, C f h w latents, T
tokens, D width.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F

from common.files import BadInput, Parser, at_least_0, between, check_writable, run_script
from common.plots import draw_reflection
from data import Batch, gate  # noqa: F401               critic.gate is data.gate
from model import UnifiedModel, add_noise, load_model
from presets import SHORT_CHAT
from vlm import ASSISTANT_TURN, USER_TURN, VILA, Prefix, chat

SYSTEM = ("Judge the edit : accuracy , it does what the instruction implies ; "
          "preservation , the rest is kept ; naturalness , it moves smoothly ; "
          "realism , no noise . Say Yes only if all four hold , else No .")
SOURCE, EDITED, VERDICT = "Source :", "Edited :", "Verdict : "
THINK = ("expect", "full", "none")                       # see `prompt`
DECODE = ("alone", "exact")                              # see `decode_frames`


# -------------------------------------------------------------------- the loss of one training step

def critic_loss(critic: "Critic", x_t: torch.Tensor, v: torch.Tensor,
                batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The critic's loss on the samples with t < tau: L_reason (G,), margin (G,) (Eq. 3, 4).

    x_t, v: (B, C, f, h, w). Differentiable in v. G = batch.near.sum().
    """
    near = batch.near
    gated = batch.select(near)
    x0_hat = clean_estimate(x_t[near], v[near], gated.t)                                   # Eq. 3
    frames = critic.decode(x0_hat)                                      # (G, K, 3, H, W)
    margin = critic.margin(gated.frames, frames, gated.instructions, gated.thoughts)    # (G,)
    return reason_loss(margin, gated.baseline), margin                  # Eq. 4, against m_0


def clean_estimate(x_t: torch.Tensor, v: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Eq. 3: x0_hat = x_t - t v, one step. x_t, v: (B, C, f, h, w); t: (B,)."""
    return x_t - t.view(-1, 1, 1, 1, 1) * v


def decode_frames(model: UnifiedModel, latents: torch.Tensor, how: str = "exact") -> torch.Tensor:
    """The K frames that the critic looks at: latents (B, C, f, h, w) -> (B, K, 3, H, W) in [-1, 1].

    "exact" decodes the whole clip, as the causal VAE needs, and picks K frames. "alone" picks K
    latent frames and decodes each as if it were a clip of its own: a sixth of the work in the tiny
    preset, whose VAE was trained for it (33 dB against the exact decode); an untrained VAE is right
    only for the first of them (11 dB). Raises BadInput where "alone" is asked for more frames than
    there are latent ones.
    """
    if how == "exact":
        return model.vlm.pick(model.decode_video(latents))
    f, k = latents.shape[2], model.vlm.frames
    if k > f:
        raise BadInput(f"{k} frames cannot be decoded alone: a clip has {f} latent frames; "
                       f"decode exactly, or look at fewer")
    picked = latents[:, :, torch.linspace(0, f - 1, k).round().long()]  # (B, C, K, h, w)
    singles = picked.transpose(1, 2).flatten(0, 1)[:, :, None]          # (B*K, C, 1, h, w)
    frames = model.decode_video(singles)[:, 0]                          # (B*K, 3, H, W)
    return frames.unflatten(0, (len(latents), k))


def reason_loss(margin: torch.Tensor, baseline: torch.Tensor) -> torch.Tensor:
    """Eq. 4: -log sigmoid(m - m_0), the cross-entropy of Yes. margin, baseline: (B,) -> (B,)."""
    return -F.logsigmoid(margin - baseline.detach())


# ------------------------------------------------------------------------------------- what is read

def opening(seen: torch.Tensor, instruction: str, system: str | None = None) -> list:
    """How every prompt begins, as a row for `VILA.join`: SYSTEM, instruction, source.

    seen: the source's tokens (T, D). They come after the instruction, so that its length does not
    change how far the edit's tokens are from them. system: that of a VLM that was not taught ours,
    which then begins the user's turn.
    """
    task = f"{SYSTEM}\n" if system else ""
    return chat(system or SYSTEM, [f"{task}{instruction}\n{SOURCE}", seen])


def prompt(think: str, begun: list, edited: torch.Tensor,
           thought: str | None = None) -> tuple[list, list]:
    """One sample's row in two parts: what does not depend on the edit and is read once, and the
    rest, from the edited frames on.

    The chain of thought is a choice of three, because of what it does to the gradient:

        "full"    as in the paper: V_src, V and I are seen, a thought is written, then the verdict
        "expect"  V_src and I are seen, what should happen is written, V is seen, then the verdict
        "none"    the verdict at once

    begun: the row of `opening`. edited: tokens (T, D). thought: None where the VLM is to write it:
    the row ends there. Texts are cut where the VLM's training cut them: the same text, cut at
    another place, can be other tokens.
    """
    *question, assistant = begun
    if think == "expect" and thought is None:
        return begun, []
    if think == "expect":
        return [*begun, f"{thought} .{USER_TURN}{EDITED}"], [edited, ASSISTANT_TURN + VERDICT]
    before = [*question, EDITED]
    if thought is None:                                  # "full": after the edit was seen
        return before, [edited, assistant]
    if think == "full" and thought:                      # an empty one is left out
        return before, [edited, ASSISTANT_TURN, f"{thought} . ", VERDICT]
    return before, [edited, ASSISTANT_TURN + VERDICT]


def interleave(source: torch.Tensor, edited: torch.Tensor) -> torch.Tensor:
    """Tokens of source and edit in turn, (T, D) both -> (2T, D): before and after, side by side.

    A VLM of a few layers, taught in an hour, learns to compare neighbours, but not tokens that are
    fifty apart.
    """
    return torch.stack([source, edited], 1).flatten(0, 1)


# --------------------------------------------------------------------------------------- the critic

class Critic:
    """Asks the model's own frozen VLM: does this edit satisfy the instruction?

    think: see `prompt`. decode: see `decode_frames`; None is the preset's. vlm: another VLM that
    judges, from `common.weights.read_vlm`. A float16 VLM is made bfloat16, in place.
    """

    def __init__(self, model: UnifiedModel, think: str = "expect", decode: str | None = None,
                 vlm: VILA | None = None):
        if think not in THINK:
            raise ValueError(f"unknown chain of thought {think!r}: "
                             f"choose one of {', '.join(THINK)}")
        self.model, self.vlm, self.think = model, vlm or model.vlm, think
        if self.vlm.llm.dtype == torch.float16:          # too narrow for the gradients of Eq. 4
            for p in self.vlm.parameters():
                p.data = p.data.bfloat16()
        self.how = decode or model.preset.decode
        words = model.preset.chat
        self.system = None if words == SHORT_CHAT else words.system
        self.yes, self.no = self.vlm.tokenizer.convert_tokens_to_ids(["Yes", "No"])

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The K frames that are looked at, of latents (B, C, f, h, w): (B, K, 3, H, W)."""
        return decode_frames(self.model, latents, self.how)

    def margin(self, source: torch.Tensor, edited: torch.Tensor, instructions: list[str],
               thoughts: list[str] | None = None) -> torch.Tensor:
        """m(V_src, V, I) = z_yes - z_no at the verdict: (B,) (Sec. 4.2.2).

        source, edited: (B, F, 3, H, W) in [-1, 1], whole clips or the K picked frames;
        differentiable in `edited`. thoughts: None writes them. What comes before the edited frames
        does not depend on them: it is read once, without gradient, into a key-value cache.
        """
        if thoughts is None:
            thoughts = self.thoughts(source, instructions, edited.detach())
        rows = self.prompts(source, edited, instructions, thoughts)
        prefix = Prefix()
        with torch.no_grad():
            before, mask = self.vlm.join([row for row, _ in rows])      # (B, T, D), (B, T)
            self.vlm.read(before, mask, prefix, last=True)
            prefix.closed = True
        after, after_mask = self.vlm.join([row for _, row in rows])
        mask = torch.cat([mask, after_mask], 1)
        logits = self.vlm.read(after, mask, prefix, last=True).logits[:, -1]     # (B, vocabulary)
        return logits[:, self.yes] - logits[:, self.no]

    @torch.no_grad()
    def baseline(self, source: torch.Tensor, instructions: list[str],
                 thoughts: list[str] | None = None) -> torch.Tensor:
        """m_0 = m(V_src, V_src, I) (B,), the margin of an edit that did nothing; no gradient."""
        return self.margin(source, source, instructions, thoughts)

    @torch.no_grad()
    def thoughts(self, source: torch.Tensor, instructions: list[str],
                 edited: torch.Tensor | None = None, limit: int = 48) -> list[str]:
        """The chain of thought, written greedily; one text a row, "" where `think` is "none".

        source, edited: (B, F, 3, H, W) in [-1, 1]; only "full" looks at `edited`.
        """
        if self.think == "none":
            return [""] * len(instructions)
        edited = source if edited is None else edited
        rows = self.prompts(source, edited, instructions, [None] * len(instructions))
        texts = self.vlm.write([[*before, *after] for before, after in rows], limit)
        thoughts = [text.split(VERDICT.strip())[0].strip() for text in texts]
        return [thought.rstrip(".").strip() for thought in thoughts]    # `prompt` adds the period

    def about_sources(self, source: torch.Tensor,
                      instructions: list[str]) -> tuple[list[str | None], torch.Tensor]:
        """What is kept of a training sample: its thought, and m_0 (B,) (Sec. 4.2.3).

        In "full" the thought is about the edit, too: it is None, and written anew in every step.
        """
        thoughts = self.thoughts(source, instructions, source)
        baseline = self.baseline(source, instructions, thoughts)
        if self.think == "full":
            thoughts = [None] * len(thoughts)
        return thoughts, baseline

    def prompts(self, source: torch.Tensor, edited: torch.Tensor, instructions: list[str],
                thoughts: list[str | None]) -> list[tuple[list, list]]:
        """`prompt` of each sample. In a `paired` preset the source's tokens stand between the
        edit's."""
        with torch.no_grad():
            before = self.vlm.see(source)                               # (B, T, D)
        is_source = edited is source and not edited.requires_grad       # m_0: see it once
        after = before if is_source else self.vlm.see(edited)
        rows = []
        for tokens, edit, instruction, thought in zip(before, after, instructions, thoughts):
            begun = opening(tokens, instruction, self.system)
            shown = interleave(tokens, edit) if self.model.preset.paired else edit
            rows.append(prompt(self.think, begun, shown, thought))
        return rows


# --------------------------------------------------------------------------- one reflection, to see

def follow(critic: Critic, latents: torch.Tensor, margin_of, steps: int = 6,
           size: float = 0.6) -> torch.Tensor:
    """Latents moved uphill on the margin, by `steps` normalised steps of RMS `size` in all.

    latents: (B, C, f, h, w). margin_of(frames (B, K, 3, H, W)) -> (B,). size: a number, or one for
    each row, (B, 1, 1, 1, 1).
    """
    z = latents.detach()
    for _ in range(steps):
        z.requires_grad_(True)
        gradient, = torch.autograd.grad(margin_of(critic.decode(z)).sum(), z)
        rms = gradient.pow(2).mean((1, 2, 3, 4), keepdim=True).sqrt().clamp_min(1e-12)
        z = (z + size / steps * gradient / rms).detach()
    return z


def reflection(model: UnifiedModel, triplet, t: float, seed: int = 0) -> dict:
    """One reflection on `triplet` at noise level t: frames (K, 3, H, W), thought and verdicts."""
    critic = Critic(model)
    source, words = triplet.source[None], [triplet.instruction]         # (1, F, 3, H, W)
    thoughts = critic.thoughts(source, words)

    def margin_of(frames):
        return critic.margin(source, frames, words, thoughts)
    with torch.no_grad():
        z, x0 = model.encode_video(source), model.encode_video(triplet.target[None])
        bridged = model.bridge(model.encode_vlm(source, words))
        c = model.context(z, bridged, model.encode_text(words))
        level = torch.tensor([t])
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed))
        x_t = add_noise(x0, noise, level)                                                  # Eq. 2
        x0_hat = clean_estimate(x_t, model.velocity(x_t, level, c, z), level)              # Eq. 3
        noisy, estimate = critic.decode(x_t), critic.decode(x0_hat)
        baseline = critic.baseline(source, words, thoughts)                                # m_0
    pixels = estimate.clone().requires_grad_(True)
    margin = margin_of(pixels)
    gradient, = torch.autograd.grad(margin.sum(), pixels)
    moved = critic.decode(follow(critic, x0_hat, margin_of)).detach()
    return {"thought": thoughts[0], "m_0": baseline.item(), "m": margin.item(),
            "m_moved": margin_of(moved).item(), "source": model.vlm.pick(source)[0],
            "x_t": noisy[0], "x0_hat": estimate[0], "heat": gradient[0].abs().sum(1),
            "moved": moved[0]}


def main(argv=None) -> None:
    from tiny.world import SUBSETS, make_triplet
    parser = Parser(description="Draw one reflection of the frozen VLM on a one-step estimate.")
    add = parser.add_argument
    add("--index", type=at_least_0, default=0, help="number of the test triplet of the tiny world")
    add("--subset", choices=SUBSETS, default="rave", help="of the tiny world")
    add("--t", type=between(0, 1, True), default=0.4, help="noise level of x_t")
    add("--weights", help="a run's or model's folder (without it: weights/tiny)")
    add("--out", type=Path, default=Path("out/reflection.png"), help="the picture to write")
    args = parser.parse_args(argv)
    check_writable(args.out, ".png")
    model = load_model(args.weights, "tiny")
    model.requires_grad_(False)
    triplet = make_triplet(args.index, args.subset)
    found = reflection(model, triplet, args.t)
    if not all(math.isfinite(found[name]) for name in ("m_0", "m", "m_moved")):
        raise BadInput(f"--weights {args.weights}: the margin is not finite; check the weights")
    draw_reflection(found, triplet.instruction, args.t, args.out)
    print(f"instruction: {triplet.instruction}\nU thinks: {found['thought']}")
    print(f"m_0 {found['m_0']:+.2f}, m {found['m']:+.2f}, "
          f"after six steps uphill {found['m_moved']:+.2f}")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    run_script(main, "stopped; nothing was written")
