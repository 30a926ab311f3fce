"""The authors' released directory (and Omni-Video's, of the same layout) as a model folder of ours.

    python model.py convert --from revise_ckpt/ --to weights/revise/
    python sample.py --preset wan1.3b --weights weights/revise/ --video my.mp4 --instruction "..." --out edited.mp4

    revise_ckpt/  wan/wanxiang1_3b/                           Wan2.1-T2V-1.3B: T5, VAE, base DiT; diffusers' layout or .pth
                  transformer/model.pt                        what ReViSE trained; wins over the parts it has again
                  adapter/model.pt  vision_head/vision_head/pytorch_model.bin      Adapter, ARHead
                  ar_model/checkpoint/{llm,vision_tower,mm_projector}/             VILA
                  unconditioned_context/context.pkl  special_tokens/tokens.pkl     the condition of nothing, boundary tokens

Every key of every file is accounted for: it becomes a tensor of ours of the same shape, or is one of UNUSED. What is
unmatched, missing or of another shape is an error that lists them all. No pickle runs code: .pt, .pth and .bin are read
with weights_only, and .pkl by an unpickler that knows tensors and dicts, nothing else. Values and dtypes stay as they are.
"""

import argparse
import io
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoTokenizer
from transformers.initialization import no_init_weights

from common.files import BadInput, Parser
from model import LIBRARY, OURS, PRESETS, UnifiedModel

UNUSED = re.compile(r"vision_tower: (vision_model\.)?head\.|context: text_emb_siglip2$")   # SigLIP's pooling head
T5_NAMES = {"attn.q": "layer.0.SelfAttention.q", "attn.k": "layer.0.SelfAttention.k", "attn.v": "layer.0.SelfAttention.v",
            "attn.o": "layer.0.SelfAttention.o", "norm1": "layer.0.layer_norm", "norm2": "layer.1.layer_norm",
            "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
            "ffn.gate.0": "layer.1.DenseReluDense.wi_0", "ffn.fc1": "layer.1.DenseReluDense.wi_1",
            "ffn.fc2": "layer.1.DenseReluDense.wo"}


# -------------------------------------------------------------------------------------------------- reading files

class TensorUnpickler(pickle.Unpickler):
    """Reads pickled tensors and dicts of them. Anything else that a pickle names is refused before it is run."""
    KNOWN = {("collections", "OrderedDict"): OrderedDict,
             ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
             ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
             # a tensor's bytes are a torch file within the pickle; torch's own reader of it would run any code there
             ("torch.storage", "_load_from_bytes"):
                 lambda content: torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)}

    def find_class(self, module, name):
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"names {module}.{name}, which is no tensor")
        return self.KNOWN[module, name]


def flat(value, path: Path, name: str = "") -> dict[str, torch.Tensor]:
    """Nested dicts of tensors as one, their names joined by dots. BadInput for anything else in them."""
    if isinstance(value, torch.Tensor):
        return {name: value.detach()}
    if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
        raise BadInput(f"{path}: holds a {type(value).__name__} at {name or 'its top'!r}: only tensors and dicts of them "
                       f"are read; is it the released file?")
    return {k: v for key, part in value.items() for k, v in flat(part, path, f"{name}.{key}" if name else key).items()}


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a .safetensors, .pt, .pth, .bin or .pkl file, or of all such files of a folder (its shards)."""
    if path.is_dir():
        files = sorted(path.glob("*.safetensors")) or sorted(p for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
        if not files:
            raise BadInput(f"{path}: holds no .safetensors, .bin, .pt or .pth; is the directory complete?")
        return {k: v for file in files for k, v in read_tensors(file).items()}
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".pkl" and not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                return flat(TensorUnpickler(file).load(), path)
        return flat(torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)), path)
    except FileNotFoundError as error:
        raise BadInput(f"{path}: is missing; is the directory complete?") from error
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, TypeError, SafetensorError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path}: cannot be read as tensors ({' '.join(str(error).split())[:200]}); download it again") from error


def stripped(tensors: dict, *wrappers: str) -> dict:
    """Without the prefixes that savers put around a whole model, where every key has them."""
    for wrapper in wrappers:
        if tensors and all(key.startswith(wrapper + ".") for key in tensors):
            tensors = {key[len(wrapper) + 1:]: value for key, value in tensors.items()}
    return tensors


# ------------------------------------------------------------------------------------------- their names and ours

def t5_names(tensors: dict) -> dict:
    """Wan's names of UMT5's encoder -> transformers'; unknown ones stay as they are."""
    def rename(key):
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.weight", key)
        if block and block[2] in T5_NAMES:
            return f"encoder.block.{block[1]}.{T5_NAMES[block[2]]}.weight"
        return {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}.get(key, key)
    return {rename(key): value for key, value in tensors.items()}


def sources(folder: Path):
    """(part of ours, file, its tensors under our names) of all the released files; of one part, later ones win."""
    wans = [p for p in (folder / "wan").glob("*") if p.is_dir()]
    if len(wans) != 1:
        raise BadInput(f"{folder}/wan: must hold one folder, Wan2.1-T2V-1.3B, and holds {len(wans)}")
    wan, vila = wans[0], folder / "ar_model" / "checkpoint"
    if (wan / "transformer").is_dir():                                                     # diffusers' layout
        for name in ("transformer", "vae", "text_encoder"):
            yield name, wan / name, read_tensors(wan / name)
    else:
        yield "transformer", wan, convert_wan_transformer_to_diffusers(read_tensors(wan))
        t5, vae = wan / "models_t5_umt5-xxl-enc-bf16.pth", wan / "Wan2.1_VAE.pth"
        yield "text_encoder", t5, t5_names(read_tensors(t5))
        yield "vae", vae, convert_wan_vae_to_diffusers(read_tensors(vae))
    yield "vlm.llm", vila / "llm", read_tensors(vila / "llm")
    yield "vlm.vision_tower", vila / "vision_tower", stripped(
        {k.removeprefix("vision_tower."): v for k, v in read_tensors(vila / "vision_tower").items()}, "vision_model")
    yield "vlm.mm_projector", vila / "mm_projector", {                                     # its layer 0 has no weights
        re.sub(r"^layers\.(\d+)", lambda m: f"layers.{int(m[1]) - 1}", k): v
        for k, v in read_tensors(vila / "mm_projector").items()}
    for name, file in (("adapter", folder / "adapter" / "model.pt"),
                       ("ar_head", folder / "vision_head" / "vision_head" / "pytorch_model.bin")):
        yield name, file, stripped(read_tensors(file), "model_state_dict", "module")
    tokens = folder / "special_tokens" / "tokens.pkl"
    yield "boundary", tokens, {k.strip("<>"): v.float().flatten() for k, v in read_tensors(tokens).items()}
    file = folder / "transformer" / "model.pt"
    parts = {"wan_model": {}, "adapter": {}, "ar_vision_head": {}, "visual_context_adapter": {}}
    for key, value in stripped(read_tensors(file), "model_state_dict", "module").items():
        prefix, _, rest = key.partition(".")
        parts.setdefault(prefix if prefix in parts else "", {})[rest if prefix in parts else key] = value
    for prefix, tensors in parts.items():
        if tensors:
            name = {"wan_model": "transformer", "ar_vision_head": "ar_head"}.get(prefix, prefix)
            yield name, file, convert_wan_transformer_to_diffusers(tensors) if prefix == "wan_model" else tensors


def read_released(folder: str | Path, preset: str = "wan1.3b") -> UnifiedModel:
    """The model in the authors' directory, dtypes as in the files. BadInput lists every key that does not fit."""
    folder, found, wrong = Path(folder), {}, []
    with init_empty_weights(), no_init_weights():         # not meta: the buffers that are in no file are to be real
        model = UnifiedModel(PRESETS[preset])
    for name, file, tensors in sources(folder):
        want = model.get_submodule(name).state_dict() if name else {}
        if "encoder.embed_tokens.weight" in want and "shared.weight" in tensors:           # T5's one table has two names
            tensors.setdefault("encoder.embed_tokens.weight", tensors["shared.weight"])
        for key, value in tensors.items():
            if key not in want:
                if not UNUSED.match(f"{name.removeprefix('vlm.')}: {key}"):
                    wrong.append(f"{file}: {key} is unknown")
            elif value.shape != want[key].shape:
                wrong.append(f"{file}: {key} is {tuple(value.shape)}, not {tuple(want[key].shape)}")
        found.setdefault(name, {}).update({k: v for k, v in tensors.items() if k in want})
    for name in (*LIBRARY, *OURS):
        wrong += [f"{name}: {key} is in no file" for key in model.get_submodule(name).state_dict()
                  if key not in found.get(name, {})]
    file = folder / "unconditioned_context" / "context.pkl"
    nothing, width = read_tensors(file), {"vlm_last_hidden_states": model.preset.llama["hidden_size"],
                                          "text_emb": model.preset.t5["d_model"]}
    wrong += [f"{file}: {key} is unknown" for key in nothing if key not in width and not UNUSED.match(f"context: {key}")]
    wrong += [f"{file}: {key} is {tuple(nothing[key].shape) if key in nothing else 'missing'}, not (T, {w})"
              for key, w in width.items() if key not in nothing or nothing[key].shape[-1] != w]
    if wrong:
        raise BadInput(f"{folder} does not fit preset {preset!r}: {len(wrong)} keys: {'; '.join(wrong)}")
    for name, tensors in found.items():
        model.get_submodule(name).load_state_dict(tensors, assign=True)
    model.nothing = {"vlm": nothing["vlm_last_hidden_states"].flatten(0, -2), "text": nothing["text_emb"].flatten(0, -2)}
    wan = next(p for p in (folder / "wan").glob("*") if p.is_dir())
    for name, home in (("vlm", folder / "ar_model" / "checkpoint" / "llm"),
                       ("text", wan / "tokenizer" if (wan / "tokenizer").is_dir() else wan / "google" / "umt5-xxl")):
        if not (home / "tokenizer_config.json").is_file():                                 # else it is looked for on the hub
            raise BadInput(f"{home}: holds no tokenizer; is the directory complete?")
        tokenizer = AutoTokenizer.from_pretrained(home, local_files_only=True)
        setattr(model.vlm if name == "vlm" else model, "tokenizer" if name == "vlm" else "text_tokenizer", tokenizer)
    return model


def main(argv: list[str]) -> None:
    parser = Parser(prog="model.py convert", description="Make a model folder of the authors' released directory.")
    parser.add_argument("--from", dest="source", type=Path, required=True, help="the released directory, revise_ckpt/")
    parser.add_argument("--to", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--preset", choices=PRESETS, default="wan1.3b", help="its size")
    args = parser.parse_args(argv)
    if not args.source.is_dir():
        raise BadInput(f"--from {args.source}: there is no such directory")
    if args.to.exists() and not (args.to / "model.json").is_file():
        raise BadInput(f"--to {args.to}: is there already, and no model folder; choose another")
    model = read_released(args.source, args.preset)
    model.save_pretrained(args.to, dtype=None)
    print(f"wrote {args.to}: {sum(p.numel() for p in model.parameters()):,d} parameters, every key accounted for")
