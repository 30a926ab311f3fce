"""What does the real run cost, on paper?

    python -m realsize.cost                        # FLOPs, bytes and hours, from the shapes alone
    python -m realsize.cost --preset tiny

flops.py counts. Hours are FLOPs divided by a share of the GPU's peak (--mfu): an assumption, not a
measurement.
"""

import bench
from common.files import Parser, between, markdown, run_script
from model import TRAINED
from presets import PRESETS, Preset
from realsize.flops import PEAK, on_meta, part_bytes, prompt_tokens, step_bytes, step_flops

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
    model, (prefix, suffix) = on_meta(p), prompt_tokens(p)
    parts = step_flops(model, prefix, suffix)
    ratio = sum(amortised(parts, tau).values()) / sum(parts["DiT"])
    weights = {part: part_bytes(model, part) for part in (
        "vlm", "text_encoder", "ar_head", "adapter", "vae", *TRAINED)}
    # with guidance G runs twice a step; VLM and T5 are left out
    sampling = 2 * p.sample_steps * parts["DiT"].forward + parts["VAE decoder"].forward
    head = (f"{p.name}: {p.frames} frames of {p.height}x{p.width}; the VLM reads "
            f"{prefix} + {suffix} tokens; USO / SFT in FLOPs {ratio:.2f}\n")
    edit = (f"An edit of one clip, {p.sample_steps} steps with guidance: {tera(sampling)} TFLOPs, "
            f"{sampling / (mfu * peak):.1f} s at {mfu:.0%} of {peak / 1e12:.0f} TFLOPs/s; "
            f"weights {sum(weights.values()) / 1e9:.1f} GB\n")
    return "\n".join([head, flops_table(parts, tau), hours_table(parts, tau, mfu * peak),
                      bytes_table("a training step, batch 1", step_bytes(model, prefix, suffix)),
                      edit, bytes_table("weights, as loaded", weights)])


def main(argv=None) -> None:
    parser = Parser(description="What the real run costs.")
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="wan1.3b", help="whose costs on paper")
    add("--tau", type=between(0, 1, True), default=bench.TAU,
        help="the critic is asked where t < tau")
    add("--mfu", type=between(0, 1, True), default=.45,
        help="share of the GPU's peak that is assumed to be reached")
    args = parser.parse_args(argv)
    print(on_paper(PRESETS[args.preset], args.tau, args.mfu))


if __name__ == "__main__":
    run_script(main, "stopped")
