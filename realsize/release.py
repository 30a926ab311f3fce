"""What lies where in the released directories of ReViSE and Omni-Video, and what it is called.

    revise_ckpt/
      wan/wanxiang1_3b/                          Wan2.1-T2V-1.3B: T5, VAE, base DiT;
                                                 in diffusers' layout, or .pth as first published
      transformer/model.pt                       what was trained; wins over parts it has again
      adapter/model.pt                           Adapter
      vision_head/vision_head/pytorch_model.bin  ARHead
      ar_model/checkpoint/llm/, vision_tower/, mm_projector/                 VILA
      unconditioned_context/context.pkl          the condition of an empty prompt, for guidance
      special_tokens/tokens.pkl                  boundary tokens, one or several rows each

`read_release` gives every tensor under our names, and `all_problems` says what does not fit a
preset. Where nobody here knows what the real files hold, both ways are read, and `Release.notes`
says which was found.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from diffusers.loaders.single_file_utils import (
    convert_wan_transformer_to_diffusers,
    convert_wan_vae_to_diffusers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from common.files import BadInput
from model import PARTS, UnifiedModel
from presets import Preset
from realsize.tensors import Checkpoint, read_checkpoint

# Tensors that the method does not use: SigLIP's pooling head, and the text embedding of a variant.
UNUSED = re.compile(r"vlm.vision_tower: (vision_model\.)?head\.|unconditional: text_emb_siglip2$")
# The chats need these as single tokens: where the condition ends, and the critic's two answers.
SINGLE_TOKENS = ("[GEN_VID]", "Yes", "No")

T5_NAMES = {
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "norm1": "layer.0.layer_norm",
    "norm2": "layer.1.layer_norm",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}


# -------------------------------------------------------------------------- their names become ours

Tensors = dict[str, torch.Tensor]


def same_names(tensors: Tensors) -> Tensors:
    return tensors


def without_wrapper(tensors: Tensors) -> Tensors:
    """Without the prefixes that savers put around a whole model, where every key has them."""
    for wrapper in ("model_state_dict.", "module."):
        if all(key.startswith(wrapper) for key in tensors):
            tensors = {key.removeprefix(wrapper): value for key, value in tensors.items()}
    return tensors


def t5_name(key: str) -> str:
    """Wan's name of a tensor of UMT5's encoder -> transformers'; an unknown one stays as it is."""
    if key == "token_embedding.weight":
        return "shared.weight"
    if key == "norm.weight":
        return "encoder.final_layer_norm.weight"
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.weight", key)
    if block and block[2] in T5_NAMES:
        return f"encoder.block.{block[1]}.{T5_NAMES[block[2]]}.weight"
    return key


def t5_names(tensors: Tensors) -> Tensors:
    return {t5_name(key): value for key, value in tensors.items()}


def vision_tower_names(tensors: Tensors) -> Tensors:
    """VILA's names begin with vision_tower. or vision_tower.vision_model. or neither."""
    tensors = {key.removeprefix("vision_tower."): value for key, value in tensors.items()}
    if all(key.startswith("vision_model.") for key in tensors):
        tensors = {key.removeprefix("vision_model."): value for key, value in tensors.items()}
    return tensors


def projector_names(tensors: Tensors) -> Tensors:
    """VILA's layer 0 only rearranges and has no weights; ours start with its layer 1."""
    def name(key):
        return re.sub(r"^layers\.(\d+)", lambda layer: f"layers.{int(layer[1]) - 1}", key)
    return {name(key): value for key, value in tensors.items()}


def boundary_names(tensors: Tensors) -> Tensors:
    """<img_st> of (D,), (1, D) or (rows, D) -> img_st, (D,) where it is one row, else (rows, D)."""
    renamed = {}
    for key, value in tensors.items():
        rows = value.float().reshape(-1, value.shape[-1])
        renamed[key.strip("<>")] = rows[0] if len(rows) == 1 else rows
    return renamed


def trained_parts(tensors: Tensors) -> dict[str, Tensors]:
    """transformer/model.pt by part; what has none of their prefixes is of the part ""."""
    names = {"wan_model": "transformer", "adapter": "adapter", "ar_vision_head": "ar_head",
             "visual_context_adapter": "visual_context_adapter"}
    parts = {}
    for key, value in without_wrapper(tensors).items():
        prefix, _, rest = key.partition(".")
        if prefix in names:
            parts.setdefault(names[prefix], {})[rest] = value
        else:
            parts.setdefault("", {})[key] = value
    if "transformer" in parts:
        parts["transformer"] = convert_wan_transformer_to_diffusers(parts["transformer"])
    return parts


# -------------------------------------------------------------------------- what lies in which file

def wan_folder(folder: Path) -> Path:
    """The one folder in `wan/`, whatever it is called."""
    folders = [path for path in (folder / "wan").glob("*") if path.is_dir()]
    if len(folders) != 1:
        raise BadInput(f"{folder}/wan: must hold one folder, Wan2.1-T2V-1.3B, "
                       f"and holds {len(folders)}")
    return folders[0]


def part_files(folder: Path) -> list[tuple[str, Path, Callable[[Tensors], Tensors]]]:
    """(part, file or folder of shards, how its names become ours), all but transformer/model.pt."""
    wan, vila = wan_folder(folder), folder / "ar_model" / "checkpoint"
    if (wan / "transformer").is_dir():                   # diffusers' layout
        of_wan = [
            ("transformer", wan / "transformer", same_names),
            ("vae", wan / "vae", same_names),
            ("text_encoder", wan / "text_encoder", same_names)]
    else:
        of_wan = [
            ("transformer", wan, convert_wan_transformer_to_diffusers),
            ("vae", wan / "Wan2.1_VAE.pth", convert_wan_vae_to_diffusers),
            ("text_encoder", wan / "models_t5_umt5-xxl-enc-bf16.pth", t5_names)]
    return of_wan + [
        ("vlm.llm", vila / "llm", same_names),
        ("vlm.vision_tower", vila / "vision_tower", vision_tower_names),
        ("vlm.mm_projector", vila / "mm_projector", projector_names),
        ("adapter", folder / "adapter" / "model.pt", without_wrapper),
        ("ar_head", folder / "vision_head" / "vision_head" / "pytorch_model.bin", without_wrapper),
        ("boundary", folder / "special_tokens" / "tokens.pkl", boundary_names)]


def tokenizer_folders(folder: Path) -> dict[str, Path]:
    """Where the tokenizers of the VLM and of T5 lie."""
    wan = wan_folder(folder)
    text = wan / "tokenizer"
    if not text.is_dir():
        text = wan / "google" / "umt5-xxl"
    return {"vlm": folder / "ar_model" / "checkpoint" / "llm", "text": text}


@dataclass
class Release:
    """What was found: tensors under our names, and what stands in the way of using them."""
    folder: Path
    parts: dict[str, Tensors] = field(default_factory=dict)
    files: dict[tuple[str, str], Path] = field(default_factory=dict)     # (part, key) -> its file
    unconditional: Tensors = field(default_factory=dict)
    tokenizers: dict[str, PreTrainedTokenizerBase] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)             # part -> error of its file
    notes: list[str] = field(default_factory=list)

    def add(self, part: str, path: Path, tensors: Tensors) -> None:
        """Of one part, later files win over earlier ones, key by key."""
        self.parts.setdefault(part, {}).update(tensors)
        self.files.update({(part, key): path for key in tensors})

    def note(self, path: Path, checkpoint: Checkpoint) -> None:
        """Say what a file holds beside the weights."""
        where = path.relative_to(self.folder)
        if checkpoint.left_out:
            self.notes.append(f"{where}: left out {', '.join(sorted(set(checkpoint.left_out)))}")
        if checkpoint.from_lists:
            self.notes.append(f"{where}: a list where a tensor is usual, its first entry is used: "
                              f"{'; '.join(checkpoint.from_lists)}")


def read_release(folder: str | Path, device: str = "cpu") -> Release:
    """Every file of the directory. What cannot be read is in `unreadable`, to be named all at once.

    device: "cpu", or "meta" for names and shapes alone. Raises BadInput for another layout.
    """
    folder = Path(folder)
    release = Release(folder)
    for part, path, our_names in part_files(folder):
        try:
            checkpoint = read_checkpoint(path, device)
        except BadInput as error:
            release.unreadable[part] = str(error)
            continue
        release.add(part, path, our_names(checkpoint.tensors))
        release.note(path, checkpoint)
    read_trained(release, device)
    read_unconditional(release, device)
    read_tokenizers(release)
    note_sizes(release)
    return release


def read_trained(release: Release, device: str) -> None:
    path = release.folder / "transformer" / "model.pt"
    try:
        checkpoint = read_checkpoint(path, device)
    except BadInput as error:
        release.unreadable["visual_context_adapter"] = str(error)
        return
    for part, tensors in trained_parts(checkpoint.tensors).items():
        release.add(part, path, tensors)
    release.note(path, checkpoint)


def read_unconditional(release: Release, device: str) -> None:
    path = release.folder / "unconditioned_context" / "context.pkl"
    try:
        checkpoint = read_checkpoint(path, device)
    except BadInput as error:
        release.unreadable["unconditional"] = str(error)
        return
    release.unconditional = checkpoint.tensors
    release.note(path, checkpoint)


def read_tokenizers(release: Release) -> None:
    for name, home in tokenizer_folders(release.folder).items():
        if not (home / "tokenizer_config.json").is_file():         # it would be sought on the hub
            error = f"{home}: holds no tokenizer; is the directory complete?"
            release.unreadable[f"{name} tokenizer"] = error
            continue
        release.tokenizers[name] = AutoTokenizer.from_pretrained(home, local_files_only=True)


def note_sizes(release: Release) -> None:
    """What differs between releases, and is taken from the files."""
    counts = []
    for name, token in release.parts.get("boundary", {}).items():
        rows = len(token) if token.ndim == 2 else 1
        counts.append(f"{name} {rows}")
    if counts:
        release.notes.append(f"boundary tokens, rows each: {', '.join(counts)}")
    if vocabulary(release):
        release.notes.append(f"the VLM's vocabulary has {vocabulary(release):,d} rows")


def vocabulary(release: Release) -> int | None:
    """Rows of the VLM's word embeddings: 128,256; 128,257 with [PAD]; or padded to a multiple."""
    table = release.parts.get("vlm.llm", {}).get("model.embed_tokens.weight")
    return None if table is None else len(table)


# ---------------------------------------------------------------------------- does it fit a preset?

def fitted_preset(release: Release, preset: Preset) -> Preset:
    """The preset with the vocabulary of the files."""
    rows = vocabulary(release) or preset.llama["vocab_size"]
    return replace(preset, llama=preset.llama | {"vocab_size": rows})


def expected_shapes(model: UnifiedModel, part: str) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in model.get_submodule(part).state_dict().items()}


def fits(part: str, found: torch.Size, expected: torch.Size) -> bool:
    """The same shape; a boundary token may have several rows."""
    if part == "boundary":
        return found[-1:] == expected[-1:]
    return found == expected


def part_problems(release: Release, model: UnifiedModel, part: str) -> list[str]:
    """Every key of one part that is unknown, of another shape, or in no file."""
    if part in release.unreadable:
        return [release.unreadable[part]]
    found, expected = release.parts.get(part, {}), expected_shapes(model, part)
    if part == "text_encoder" and "shared.weight" in found:              # one table with two names
        found.setdefault("encoder.embed_tokens.weight", found["shared.weight"])
    problems = []
    for key, value in found.items():
        file = release.files.get((part, key))
        if key not in expected:
            if not UNUSED.match(f"{part}: {key}"):
                problems.append(f"{file}: {key} is unknown")
        elif not fits(part, value.shape, expected[key]):
            problems.append(f"{file}: {key} is {tuple(value.shape)}, not {tuple(expected[key])}")
    problems += [f"{part}: {key} is in no file" for key in expected if key not in found]
    return problems


def unplaced_problems(release: Release) -> list[str]:
    """Tensors of transformer/model.pt that belong to no part."""
    return [f"{release.files['', key]}: {key} is unknown" for key in release.parts.get("", {})]


def unconditional_problems(release: Release, preset: Preset) -> list[str]:
    if "unconditional" in release.unreadable:
        return [release.unreadable["unconditional"]]
    file = release.folder / "unconditioned_context" / "context.pkl"
    widths = {"vlm_last_hidden_states": preset.llama["hidden_size"],
              "text_emb": preset.t5["d_model"]}
    problems = []
    for key, value in release.unconditional.items():
        if key in widths and value.shape[-1:] != (widths[key],):
            problems.append(f"{file}: {key} is {tuple(value.shape)}, not (T, {widths[key]})")
        elif key not in widths and not UNUSED.match(f"unconditional: {key}"):
            problems.append(f"{file}: {key} is unknown")
    problems += [f"{file}: {key} is missing, not (T, {width})"
                 for key, width in widths.items() if key not in release.unconditional]
    return problems


def tokenizer_problems(release: Release) -> list[str]:
    """No tokenizer, more tokens than the table has rows, or a word that is not the one token."""
    problems = [error for name, error in release.unreadable.items() if name.endswith("tokenizer")]
    tokenizer, rows = release.tokenizers.get("vlm"), vocabulary(release)
    if tokenizer is None:
        return problems
    home = tokenizer_folders(release.folder)["vlm"]
    if rows is not None and len(tokenizer) > rows:
        problems.append(f"{home}: its tokenizer has {len(tokenizer):,d} tokens, "
                        f"and the word embeddings have {rows:,d} rows")
    for word in SINGLE_TOKENS:
        ids = tokenizer(word, add_special_tokens=False).input_ids
        if len(ids) != 1:
            problems.append(f"{home}: its tokenizer reads {word!r} as {len(ids)} tokens, "
                            f"and one is needed; is it the release's own?")
    return problems


def all_problems(release: Release, model: UnifiedModel) -> list[str]:
    """Everything that stops `convert`."""
    problems = [problem for part in PARTS for problem in part_problems(release, model, part)]
    problems += unplaced_problems(release)
    problems += unconditional_problems(release, model.preset)
    return problems + tokenizer_problems(release)
