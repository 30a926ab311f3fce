"""What does the real run cost, on paper? And what does it cost to wait for the gate?

    python cost.py                               # FLOPs, bytes and hours of the real run, from the shapes alone
    python cost.py --gate                        # expected step against 1 to 1024 ranks, from parts measured here
    torchrun --nproc_per_node 2 cost.py --gate   # and a real run of two ranks beside the expectation

A FLOP is an addition or a multiplication; counted are matrix products, convolutions and attention (its full square, as torch's
counter has it), not norms and activations. Trained parts cost two forward passes more in the backward pass, frozen ones that
only pass a gradient on cost one. "Run again" is the forward pass that `scale.lean` repeats instead of keeping activations.

Axis letters: B batch, C f h w latents, K frames seen by the critic, N tokens of the DiT, T context tokens, D width.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from common.distributed import RANK, WORLD_SIZE
from common.files import BadInput, Parser, atomic_write, markdown, replacing, run_script
from model import PRESETS, Preset, sample_timesteps, sample_timesteps_together

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # bfloat16 FLOPs a second without sparsity, by the makers
RANKS = [2 ** k for k in range(11)]


# ------------------------------------------------------------------------------------------------- on paper: FLOPs

def dit_flops(p: Preset) -> tuple[float, float]:
    """(forward, backward) of G and the visual context adapter on one clip."""
    c, f, h, w = p.latent_shape
    d, layers, ffn, wide = p.dit["num_attention_heads"] * p.dit["attention_head_dim"], p.dit["num_layers"], p.dit["ffn_dim"], \
        p.dit["text_dim"]
    patch, t = math.prod(p.dit["patch_size"]), p.context_length
    n = f * h * w // patch
    seen = f * (h // p.visual_kernel) * (w // p.visual_kernel)
    first = n * d * p.dit["in_channels"] * patch + p.dit["freq_dim"] * d + seen * c * p.visual_kernel ** 2 * p.visual_width
    block = 4 * n * d * d + 2 * n * n * d + 2 * n * d * d + 2 * t * d * d + 2 * n * t * d + 2 * n * d * ffn
    rest = layers * block + t * (wide * d + d * d) + d * d + d * 6 * d + n * d * p.dit["out_channels"] * patch \
        + seen * p.visual_width * wide
    return 2 * (first + rest), 2 * (first + 2 * rest)                                      # nothing is passed on by the first


def decode_flops(p: Preset) -> tuple[float, float]:
    """(forward, backward) of the frozen VAE's decoder on a clip, or on K single latent frames: by torch's counter."""
    c, f, h, w = p.latent_shape
    clips, frames = (1, f) if p.decode == "exact" else (p.vlm_frames, 1)
    with torch.device("meta"):                           # shapes, and no numbers
        vae, z = AutoencoderKLWan(**p.vae).requires_grad_(False), torch.empty(clips, c, frames, h, w, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        video = vae.decode(z).sample
        forward = counter.get_total_flops()
        video.sum().backward()
    return forward, counter.get_total_flops() - forward


def siglip_flops(p: Preset) -> tuple[float, float]:
    """(forward, backward) of the frozen SigLIP and projector on K frames; its last block is run, but not looked at."""
    s = p.siglip
    side, d = s["image_size"] // s["patch_size"], s["hidden_size"]
    n, layers = side * side, s["num_hidden_layers"]
    weights, square = 4 * n * d * d + 2 * n * d * s["intermediate_size"], 2 * n * n * d
    patch = n * d * 3 * s["patch_size"] ** 2
    project = (-(-side // 2)) ** 2 * (4 * d * p.llama["hidden_size"] + p.llama["hidden_size"] ** 2)
    forward = patch + layers * (weights + square) + project
    backward = patch + (layers - 1) * (weights + 2 * square) + project
    return 2 * p.vlm_frames * forward, 2 * p.vlm_frames * backward


def llama_flops(p: Preset, tokens: int, before: int = 0, judged: int = 0) -> tuple[float, float]:
    """(forward, backward) of the frozen Llama on `tokens` tokens that come after `before` others, kept in its cache.

    judged: the tokens of which there are logits.
    """
    m = p.llama
    d, inner = m["hidden_size"], m["num_key_value_heads"] * m["hidden_size"] // m["num_attention_heads"]
    weights = m["num_hidden_layers"] * tokens * (2 * d * d + 2 * d * inner + 3 * d * m["intermediate_size"]) \
        + judged * d * m["vocab_size"]
    square = m["num_hidden_layers"] * 2 * tokens * (tokens + before) * d
    return 2 * (weights + square), 2 * (weights + 2 * square)


def step_flops(p: Preset, prefix: int, suffix: int) -> dict[str, tuple[float, float, float]]:
    """FLOPs of one sample, part -> (forward, backward, run again), where the critic is asked; SFT is the first alone.

    prefix, suffix: tokens that the VLM reads before the edited frames, and from them on.
    """
    g, decode, siglip = dit_flops(p), decode_flops(p), siglip_flops(p)
    after, before = llama_flops(p, suffix, prefix, suffix), llama_flops(p, prefix, judged=1)
    last = 2 * suffix * p.llama["hidden_size"] * p.llama["vocab_size"]                     # the head is not run again
    return {"DiT": (*g, g[0]), "VAE decoder": (*decode, decode[0]), "SigLIP, source": (siglip[0], 0., 0.),
            "SigLIP, edit": (*siglip, siglip[0]), "Llama, prefix": (before[0], 0., 0.),
            "Llama, edit and verdict": (*after, after[0] - last)}


def step_bytes(p: Preset, prefix: int, suffix: int, batch: int = 1) -> dict[str, float]:
    """Bytes that live through a lean USO step on one GPU, and that a step moves at least; float32 for G, the VLM in bfloat16."""
    with torch.device("meta"):
        from model import TRAINED, UnifiedModel
        model = UnifiedModel(p)
    size = lambda *names: sum(x.numel() for name in names for x in model.get_submodule(name).parameters())
    c, f, h, w = p.latent_shape
    d, m = p.dit["num_attention_heads"] * p.dit["attention_head_dim"], p.llama
    n, trained, half = f * h * w // math.prod(p.dit["patch_size"]), size(*TRAINED), 2 if p.bf16 else 4
    inner = m["num_key_value_heads"] * m["hidden_size"] // m["num_attention_heads"]
    patches = (p.siglip["image_size"] // p.siglip["patch_size"]) ** 2
    return {"G: weights, gradients, AdamW": 16. * trained, "VLM": half * size("vlm"), "VAE": 4. * size("vae"),
            "inputs of the DiT's blocks": batch * 4. * n * d * p.dit["num_layers"],
            "inputs of the VLM's blocks": batch * float(half) * (
                suffix * m["hidden_size"] * m["num_hidden_layers"]
                + p.vlm_frames * patches * p.siglip["hidden_size"] * p.siglip["num_hidden_layers"]),
            "keys and values of the prefix": batch * 2. * half * prefix * inner * m["num_hidden_layers"],
            "logits": batch * 4. * suffix * m["vocab_size"],
            "moved by AdamW": 28. * trained, "all-reduced": 4. * trained,
            "cache of latents, a clip": half * (p.ar_queries * p.adapter_queries + 32) * p.dit["text_dim"]
            + 2 * 4. * c * f * h * w + 3 * p.vlm_frames * p.height * p.width}


def on_paper(p: Preset, prefix: int, suffix: int, tau: float = .5, mfu: float = .45, peak: float = PEAK["H100"],
             samples: int = 56_000 * 15) -> str:
    """The tables of README's "What the real run costs"."""
    rate, parts, held = tau / (3 - 2 * tau), step_flops(p, prefix, suffix), step_bytes(p, prefix, suffix)
    share = lambda name: 1 if name == "DiT" else rate
    total = {name: share(name) * sum(x) for name, x in parts.items()}
    whole, plain = sum(total.values()), sum(parts["DiT"])
    tera = lambda x: f"{x / 1e12:.2f}"
    lines = [["TFLOPs a sample", "forward", "backward", "run again", f"amortised, tau {tau}", "share"]]
    lines += [[name, *map(tera, x), tera(total[name]), f"{total[name] / whole:.0%}"] for name, x in parts.items()]
    lines += [["all", *(tera(sum(x[k] for x in parts.values())) for k in range(3)), tera(whole), "100%"]]
    hours = [["hours at " f"{mfu:.0%} of {peak / 1e12:.0f} TFLOPs/s", "1 GPU", "8 GPUs"]]
    for name, flops in (("SFT", plain), ("USO", whole)):
        alone = samples * flops / (mfu * peak) / 3600
        hours.append([name, f"{alone:.1f}", f"{alone / 8:.1f}"])
    memory = [["GB, batch 1", ""]] + [[name, f"{x / 1e9:.3f}"] for name, x in held.items()]
    return (f"{p.name}: {p.frames} frames of {p.height}x{p.width}; the VLM reads {prefix} + {suffix} tokens; "
            f"USO / SFT in FLOPs {whole / plain:.2f}\n\n" + "\n".join(map(markdown, (lines, hours, memory))))


def real_tokens(p: Preset) -> tuple[int, int]:
    """(prefix, suffix) of the critic's question at the real size: the frames' tokens, and some 180 and 16 of text."""
    frame = (-(-(p.siglip["image_size"] // p.siglip["patch_size"]) // 2)) ** 2
    return p.vlm_frames * frame + 180, p.vlm_frames * frame * (1 + p.paired) + 16


# --------------------------------------------------------------------------------------------- waiting for the gate

def expected_step(cost: list[float], p: float, ranks: int, together: bool) -> float:
    """The mean time of a step of `ranks` ranks that wait for each other: E[max over ranks of cost[g]], any unit.

    cost[g]: of a rank's step with g of its len(cost) - 1 samples gated, each with probability p, rising in g.
    Together: the ranks' numbers are the same, so the maximum is any of them. Alone: P(max <= g) = P(one <= g)^ranks.
    """
    batch = len(cost) - 1
    chance = [math.comb(batch, g) * p ** g * (1 - p) ** (batch - g) for g in range(batch + 1)]
    if together:
        return sum(map(math.prod, zip(chance, cost)))
    most = [sum(chance[:g + 1]) ** ranks for g in range(batch + 1)]
    return sum((now - before) * c for now, before, c in zip(most, [0, *most], cost))


def gated_counts(batch: int, ranks: int, tau: float, together: bool, steps: int, seed: int = 0) -> torch.Tensor:
    """How many of each rank's samples are gated, by train.py's own draws: (steps, ranks)."""
    g = torch.Generator().manual_seed(seed)
    n = batch * ranks
    t = [sample_timesteps_together(n, ranks, tau, 3., g) if together else sample_timesteps(n, 3., g) for _ in range(steps)]
    return (torch.stack(t) < tau).view(steps, batch, ranks).sum(1)


def gate_parts(batch: int, repeats: int, steps: int) -> dict:
    """Milliseconds of a rank's step by how many are gated; with more than one rank, also of a real run, both ways."""
    from statistics import median
    import bench
    from critic import Critic
    from realsize.scale import average_gradients, device
    model = bench.random_model().to(device())
    data, critic = bench.random_data(model, batch), Critic(model)
    params = model.freeze()
    optimizer = torch.optim.AdamW(params, lr=0.)
    asked = [""] * batch, torch.zeros(batch, device=model.device)

    def one(gated):
        began = time.perf_counter()
        bench.training_step(model, optimizer, data, critic, model.preset.decode, asked, gated)
        if WORLD_SIZE > 1:
            average_gradients(params)                    # after the optimizer, which changes nothing here: as much work
        elif model.device.type == "cuda":
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - began)
    for gated in range(batch + 1):                       # to warm up
        one(gated)
    times = [[one(gated) for _ in range(repeats)] for gated in range(batch + 1)]           # all ranks the same: nobody waits
    found = {"batch": batch, "ms_by_gated": [median(row) for row in times]}
    if WORLD_SIZE > 1:
        real = {"alone": [], "together": []}
        draws = {way: gated_counts(batch, WORLD_SIZE, .5, way == "together", steps)[:, RANK].tolist() for way in real}
        for step in range(steps):                        # in turn: a drift of the machine cancels
            for way in real:
                dist.barrier()
                real[way].append(one(draws[way][step]))
        # the parts once more, as they were during the run: where all ranks have the same to do; and what they foretell
        own = [[ms for ms, g in zip(real["together"], draws["together"]) if g == gated] for gated in range(batch + 1)]
        found["ms_by_gated"] = [sum(x) / len(x) if x else before for x, before in zip(own, found["ms_by_gated"])]
        most = gated_counts(batch, WORLD_SIZE, .5, False, steps).max(1).values.tolist()
        found |= {"ranks": WORLD_SIZE, "steps": steps, "real_ms": {way: sum(x) / steps for way, x in real.items()},
                  "alone_foretold_ms": sum(found["ms_by_gated"][g] for g in most) / steps,
                  "share_of_steps_with_a_gated_sample": {"alone": sum(map(bool, most)) / steps,
                                                         "together": sum(map(bool, draws["together"])) / steps}}
    return found


def draw_gate(found: dict, path: Path, tau: float = .5) -> dict:
    """The figure; returns its points, way -> step over SFT for each of RANKS."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    cost, p = found["ms_by_gated"], tau / (3 - 2 * tau)
    points = {way: [expected_step(cost, p, n, way == "together") / cost[0] for n in RANKS] for way in ("alone", "together")}
    figure, ax = plt.subplots(figsize=(6, 3.4))
    for way, ratios in points.items():
        line, = ax.plot(RANKS, ratios, "o-", ms=3, label=f"each rank gates {way}" if way == "alone" else "all gate together")
        if "real_ms" in found:
            ax.plot(found["ranks"], found["real_ms"][way] / cost[0], "*", ms=13, color=line.get_color(),
                    label=f"{way}: {found['steps']} real steps")
    ax.axhline(cost[-1] / cost[0], color="grey", ls="--", lw=1, label="every sample gated")
    ax.set(xscale="log", xlabel="ranks", ylabel="mean step / SFT step", title=f"batch {found['batch']} a rank, tau {tau}")
    ax.set_xticks(RANKS, RANKS, fontsize=7)
    ax.legend(fontsize=7)
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
    return points


def main(argv=None) -> None:
    parser = Parser(description="What the real run costs.")
    parser.add_argument("--preset", choices=PRESETS, default="wan1.3b", help="whose costs on paper")
    parser.add_argument("--tau", type=float, default=.5, help="the critic is asked where t < tau")
    parser.add_argument("--mfu", type=float, default=.45, help="share of the GPU's peak that is assumed to be reached")
    parser.add_argument("--gate", action="store_true", help="measure what waiting for the gate costs, on the tiny preset")
    parser.add_argument("--batch", type=int, default=1, help="--gate: samples a rank and step")
    parser.add_argument("--repeats", type=int, default=5, help="--gate: how often each part is timed")
    parser.add_argument("--steps", type=int, default=60, help="--gate: of the real run, both ways")
    parser.add_argument("--out", type=Path, default=Path("results"), help="--gate: folder of gate.json and gate.png")
    args = parser.parse_args(argv)
    if not 0 < args.tau <= 1 or not 0 < args.mfu <= 1:
        raise BadInput("--tau and --mfu must be in (0, 1]")
    if min(args.batch, args.repeats, args.steps) < 1:
        raise BadInput("--batch, --repeats and --steps must be at least 1")
    if not args.gate:
        p = PRESETS[args.preset]
        print(on_paper(p, *real_tokens(p), args.tau, args.mfu))
        return
    import bench
    from realsize.scale import start
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // WORLD_SIZE))
    start()
    about = bench.about(1)
    found = gate_parts(args.batch, args.repeats, args.steps)
    if RANK == 0:
        found |= {"tau": .5, "step_over_sft": dict(zip(("ranks", "alone", "together"),
                                                     (RANKS, *draw_gate(found, args.out / "gate.png").values())))}
        atomic_write(args.out / "gate.json", json.dumps({**about, **found}, indent=1) + "\n")
        print(json.dumps(found, indent=1))
    if WORLD_SIZE > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    run_script(main, "stopped; nothing was written")
