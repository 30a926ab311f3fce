"""What does a step cost at the real size? On one GPU, with random weights.

    python -m realsize.bench             # SFT, USO and own edits: Wan2.1-1.3B, an 8B VLM
    python -m realsize.bench --repeats 3 --out results

Prints milliseconds, peak memory, ratios to SFT and MFU of SFT; bench.json in --out. The measuring
is bench.py's, the steps are train.py's. The parts that run once a training sample (T5, ARHead,
Adapter) are not built.

Nobody has run it on a GPU: without one it says so and stops.
"""

import json
from pathlib import Path

import torch
from accelerate import init_empty_weights
from transformers.initialization import no_init_weights

import bench
from common.distributed import device
from common.files import BadInput, Parser, atomic_write, check_writable, positive, run_script
from common.measure import about
from common.precision import keep_ends_in_float32
from critic import SYSTEM
from model import PARTS, UnifiedModel
from presets import PRESETS
from realsize.cost import PEAK, on_meta, step_flops
from realsize.train import recompute_activations
from tiny.tokenizer import make_tokenizer

ONCE_A_SAMPLE = ("text_encoder", "ar_head", "adapter")


def random_model() -> UnifiedModel:
    """wan1.3b with random weights, made where it is to run, activations recomputed."""
    torch.manual_seed(0)
    with init_empty_weights(), no_init_weights():
        model = UnifiedModel(PRESETS["wan1.3b"]).eval()
    for part in ONCE_A_SAMPLE:
        delattr(model, part)
    for part in PARTS:
        if part not in ONCE_A_SAMPLE:
            for module in model.get_submodule(part).modules():
                fill(module, model.dtype_of(part))
    model.to(device())
    keep_ends_in_float32(model.transformer)
    recompute_activations(model)
    tokenizer = make_tokenizer([SYSTEM, *bench.all_phrases()], model.preset.t5["vocab_size"])
    model.vlm.tokenizer = model.text_tokenizer = tokenizer
    return model


def fill(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Give its own parameters memory: small random weights, norms of 1, biases of 0."""
    for name, p in module.named_parameters(recurse=False):
        x = torch.empty(p.shape, dtype=dtype, device=device())
        if x.ndim > 1 and "gamma" not in name:
            x.normal_(0, .02)
        else:
            x.fill_(0 if name == "bias" else 1)
        module.register_parameter(name, torch.nn.Parameter(x))


def measure(model: UnifiedModel, batch: int, repeats: int, peak: float | None) -> dict:
    """SFT and USO as bench.measure has them, and the MFU of SFT: its share of `peak` FLOP/s.

    One forward and one backward pass of G count for it; not what is computed again.
    """
    critics = [(model.preset.decode, "expect")]
    found = bench.measure(model, batch, repeats, critics, flops=False)
    forward, backward, _ = step_flops(on_meta(model.preset), 1, 1)["DiT"]
    seconds = found["steps"]["SFT"]["tau"][bench.TAU]["ms"] / 1000
    found["mfu_of_sft"] = peak and batch * (forward + backward) / seconds / peak
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
    peak = next((rate for name, rate in PEAK.items() if name in gpu), None)
    result = about() | {"weights": "random", "batch": args.batch}
    result |= measure(random_model(), args.batch, args.repeats, peak)
    print(bench.report(result))
    mfu = f"{result['mfu_of_sft']:.1%}" if peak else "not known of this GPU"
    print(f"MFU of SFT: {mfu}")
    atomic_write(args.out / "bench.json", json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main, "stopped; nothing was written")
