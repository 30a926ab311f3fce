"""What does the real run cost, on paper? And what does it cost to wait for the gate?

    python -m realsize.cost                        # FLOPs, bytes and hours, from the shapes alone
    python -m realsize.cost --preset tiny
    python -m realsize.cost --gate                 # 1 to 1024 ranks, from parts measured here
    torchrun --nproc_per_node 2 -m realsize.cost --gate        # and a real run of two ranks beside

The formulas are in flops.py, what waiting costs in gate_cost.py. Hours are FLOPs divided by a share
of the GPU's peak (--mfu): an assumption, not a measurement.
"""

import json
from pathlib import Path

import torch

import bench
from common.distributed import is_first_rank, start, stop
from common.files import (Parser, atomic_write, between, check_writable, markdown, positive,
                          run_script)
from presets import PRESETS, Preset
from realsize.flops import PEAK, part_bytes, prompt_tokens, sampling_flops, step_bytes, step_flops
from realsize.gate_cost import TAU, draw_gate, measure_gate, step_over_sft

SAMPLES = 56_000 * 15                            # of the paper's run: triplets times epochs


def amortised(parts: dict, tau: float) -> dict[str, float]:
    """FLOPs a sample of each part; all but the DiT are run only where t < tau."""
    rate = bench.trigger_rate(tau)
    return {name: sum(x) * (1 if name == "DiT" else rate) for name, x in parts.items()}


def tera(x: float) -> str:
    return f"{x / 1e12:.2f}"


def flops_table(parts: dict, tau: float) -> str:
    mean = amortised(parts, tau)
    total = sum(mean.values())
    rows = [["TFLOPs a sample", "forward", "backward", "run again", f"amortised, tau {tau}",
             "share"]]
    for name, x in parts.items():
        rows.append([name, *map(tera, x), tera(mean[name]), f"{mean[name] / total:.0%}"])
    columns = [sum(column) for column in zip(*parts.values())]
    rows.append(["all", *map(tera, columns), tera(total), "100%"])
    return markdown(rows)


def hours_table(parts: dict, tau: float, speed: float) -> str:
    """speed: FLOPs a second that are reached."""
    rows = [[f"hours at {speed / 1e12:.0f} TFLOPs/s", "1 GPU", "8 GPUs"]]
    for name, flops in (("SFT", sum(parts["DiT"])), ("USO", sum(amortised(parts, tau).values()))):
        hours = SAMPLES * flops / speed / 3600
        rows.append([name, f"{hours:.1f}", f"{hours / 8:.1f}"])
    return markdown(rows)


def bytes_table(title: str, sizes: dict[str, float]) -> str:
    rows = [[title, "GB"]]
    rows += [[name, f"{size / 1e9:.3f}"] for name, size in sizes.items()]
    return markdown(rows)


def on_paper(p: Preset, tau: float, mfu: float, peak: float = PEAK["H100"]) -> str:
    """The tables of realsize/README.md."""
    prefix, suffix = prompt_tokens(p)
    parts = step_flops(p, prefix, suffix)
    ratio = sum(amortised(parts, tau).values()) / sum(parts["DiT"])
    weights = part_bytes(p)
    sampling = sampling_flops(p, parts)
    head = (f"{p.name}: {p.frames} frames of {p.height}x{p.width}; the VLM reads "
            f"{prefix} + {suffix} tokens; USO / SFT in FLOPs {ratio:.2f}\n")
    edit = (f"An edit of one clip, {p.sample_steps} steps with guidance: {tera(sampling)} TFLOPs, "
            f"{sampling / (mfu * peak):.1f} s at {mfu:.0%} of {peak / 1e12:.0f} TFLOPs/s; "
            f"weights {sum(weights.values()) / 1e9:.1f} GB\n")
    return "\n".join([head, flops_table(parts, tau), hours_table(parts, tau, mfu * peak),
                      bytes_table("a training step, batch 1", step_bytes(p, prefix, suffix)),
                      edit, bytes_table("weights, as loaded", weights)])


def gate(args) -> None:
    """Measure, draw and keep what waiting for the gate costs."""
    start()
    about = bench.about(torch.get_num_threads())
    found = measure_gate(args.batch, args.repeats, args.steps)
    if is_first_rank():
        draw_gate(found, args.out / "gate.png")
        found |= {"tau": TAU, "step_over_sft": step_over_sft(found)}
        atomic_write(args.out / "gate.json", json.dumps({**about, **found}, indent=1) + "\n")
        print(json.dumps(found, indent=1))
    stop()


def main(argv=None) -> None:
    parser = Parser(prog="realsize.cost", description="What the real run costs.")
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="wan1.3b", help="whose costs on paper")
    add("--tau", type=between(0, 1, True), default=TAU, help="the critic is asked where t < tau")
    add("--mfu", type=between(0, 1, True), default=.45,
        help="share of the GPU's peak that is assumed to be reached")
    add("--gate", action="store_true", help="measure what waiting for the gate costs, on tiny")
    add("--batch", type=positive, default=1, help="--gate: samples a rank and step")
    add("--repeats", type=positive, default=5, help="--gate: how often each part is timed")
    add("--steps", type=positive, default=60, help="--gate: of the real run, both ways")
    add("--out", type=Path, default=Path("out/cost"),
        help="--gate: folder of gate.json and gate.png")
    args = parser.parse_args(argv)
    if args.gate:
        check_writable(args.out / "gate.json")
        gate(args)
    else:
        print(on_paper(PRESETS[args.preset], args.tau, args.mfu))


if __name__ == "__main__":
    run_script(main, "stopped; nothing was written")
