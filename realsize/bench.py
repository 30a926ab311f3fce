"""What does a step cost at the real size? On one GPU, with random weights.

    python -m realsize.bench             # SFT, USO and the rivals of Wan2.1-1.3B with an 8B VLM
    python -m realsize.bench --repeats 3 --out results

Prints milliseconds, peak memory, USO / SFT, MFU of SFT and what the other ways to use the same
reward cost in USO steps; bench.json in --out. The measuring is bench.py's, the step train.py's. The
parts that run once a training sample (T5, ARHead, Adapter) are not built.

Nobody has run it on a GPU: without one it says so and stops.
"""

import json
from pathlib import Path

import torch
from accelerate import init_empty_weights
from transformers.initialization import no_init_weights

import bench
from common.distributed import device
from common.files import (BadInput, Parser, atomic_write, check_writable, markdown, positive,
                          run_script)
from common.measure import about
from common.precision import keep_ends_in_float32
from critic import SYSTEM
from model import PARTS, UnifiedModel
from presets import PRESETS
from realsize.flops import PEAK, dit_flops, on_meta
from realsize.train import recompute_activations
from tiny.tokenizer import make_tokenizer

GOAL = 1.8                                   # USO / SFT at tau 0.5; the FLOPs say 1.82


def random_model(preset: str = "wan1.3b") -> UnifiedModel:
    """The preset with random weights, made where it is to run, activations recomputed."""
    torch.manual_seed(0)
    with init_empty_weights(), no_init_weights():
        model = UnifiedModel(PRESETS[preset]).eval()
    for part in ("text_encoder", "ar_head", "adapter"):
        delattr(model, part)
    fill(model)
    model.to(device())
    keep_ends_in_float32(model.transformer)
    recompute_activations(model)
    tokenizer = make_tokenizer([SYSTEM, *bench.all_phrases()], model.preset.t5["vocab_size"])
    model.vlm.tokenizer = model.text_tokenizer = tokenizer
    return model


def fill(model: UnifiedModel) -> None:
    """Give every parameter memory: small random weights, norms of 1, biases of 0."""
    for part in PARTS:
        if not hasattr(model, part.partition(".")[0]):
            continue
        for module in model.get_submodule(part).modules():
            for name, p in module.named_parameters(recurse=False):
                x = torch.empty(p.shape, dtype=model.dtype_of(part), device=device())
                if x.ndim > 1 and "gamma" not in name:
                    x.normal_(0, .02)
                else:
                    x.fill_(0 if name == "bias" else 1)
                module.register_parameter(name, torch.nn.Parameter(x))


def mfu(model: UnifiedModel, batch: int, ms: float, peak: float) -> float:
    """The share of `peak` FLOP/s that an SFT step of `ms` milliseconds reaches.

    Counted are one forward and one backward pass of G; not what is computed again.
    """
    forward, backward, _ = dit_flops(on_meta(model.preset))
    return batch * (forward + backward) / (ms / 1000) / peak


def measure(model: UnifiedModel, batch: int, repeats: int, peak: float | None) -> dict:
    """SFT and USO as bench.measure has them, with MFU where the GPU's peak FLOP/s are known."""
    way = (model.preset.decode, "expect")
    found = bench.measure(model, batch, repeats, [way], flops=False)
    sft = found["steps"]["SFT"]["tau"][bench.TAU]["ms"]
    ratio = found["goal"]["ratio"]
    found["goal"] |= {"at_most": GOAL, "met": ratio <= GOAL}
    found["mfu_of_sft"] = mfu(model, batch, sft, peak) if peak else None
    return found


def main(argv=None) -> None:
    parser = Parser(description="Measure a training step at the real size.")
    parser.add_argument("--batch", type=positive, default=1, help="samples a step")
    parser.add_argument("--repeats", type=positive, default=3, help="how often each step is timed")
    parser.add_argument("--out", type=Path, default=Path("out/bench-real"),
                        help="folder of bench.json")
    args = parser.parse_args(argv)
    check_writable(args.out / "bench.json")
    if not torch.cuda.is_available():
        raise BadInput("there is no GPU here: python bench.py measures the tiny preset on a CPU")
    gpu = torch.cuda.get_device_name()
    peaks = [rate for name, rate in PEAK.items() if name in gpu]
    setting = about() | {"weights": "random", "batch": args.batch}
    peak = peaks[0] if peaks else None
    result = setting | measure(random_model(), args.batch, args.repeats, peak)
    print(bench.report(result))
    lines = [["MFU of SFT", "-" if result["mfu_of_sft"] is None else f"{result['mfu_of_sft']:.1%}"]]
    print(markdown([["measure", "value"], *lines]))
    atomic_write(args.out / "bench.json", json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main, "stopped; nothing was written")
