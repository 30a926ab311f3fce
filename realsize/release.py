"""What lies where in the released directories of ReViSE and Omni-Video, and what it is called.

    revise_ckpt/
      wan/wanxiang1_3b/                          Wan2.1-T2V-1.3B: T5, VAE, base DiT
      transformer/model.pt                       what was trained; wins over parts it has again
      adapter/model.pt                           Adapter
      vision_head/vision_head/pytorch_model.bin  ARHead
      ar_model/checkpoint/llm/, vision_tower/, mm_projector/                 VILA
      unconditioned_context/context.pkl          the condition of an empty prompt, for guidance
      special_tokens/tokens.pkl                  boundary tokens, one or several rows each

`read_release` gives every tensor under our names, and `all_problems` says what does not fit a
preset. Where nobody here knows what the real files hold, both ways are read.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from diffusers.loaders.single_file_utils import (
    convert_wan_transformer_to_diffusers,
    convert_wan_vae_to_diffusers,
)
from transformers import PreTrainedTokenizerFast

from common.files import BadInput
from model import PARTS, UnifiedModel
from presets import Preset
from realsize.tensors import Tensors, read_checkpoint

TRAINED_FILE = Path("transformer", "model.pt")
WAN = Path("wan", "wanxiang1_3b")
VILA = Path("ar_model", "checkpoint")
# Of these the files say how many rows there are: boundary tokens, the condition of an empty prompt.
WITH_ROWS = ("boundary", "unconditional")
# The chats need these as single tokens: where the condition ends, and the critic's two answers.
SINGLE_TOKENS = ("[GEN_VID]", "Yes", "No")
SENTENCE = "What would this street look like after a night of hard frost?"
# What a config.json must say as the preset does; the shapes of the tensors show only some of it.
SAME_CONFIG = {
    "vlm.llm": ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                "num_key_value_heads", "hidden_act", "rms_norm_eps", "rope_parameters"),
    "vlm.vision_tower": ("hidden_size", "intermediate_size", "num_hidden_layers",
                         "num_attention_heads", "image_size", "patch_size", "hidden_act",
                         "layer_norm_eps")}
# How VILA looks at frames; no other way is built here.
VILA_CONFIG = {"mm_vision_select_layer": -2, "mm_vision_select_feature": "cls_patch",
               "image_aspect_ratio": "resize", "mm_projector_type": "mlp_downsample"}

T5_NAMES = {                                             # Wan's names of UMT5's encoder -> ours
    r"^token_embedding\.": "shared.",
    r"^norm\.": "encoder.final_layer_norm.",
    r"^blocks\.": "encoder.block.",
    r"\.attn\.([qkvo])\.": r".layer.0.SelfAttention.\1.",
    r"\.pos_embedding\.embedding\.": ".layer.0.SelfAttention.relative_attention_bias.",
    r"\.norm1\.": ".layer.0.layer_norm.",
    r"\.norm2\.": ".layer.1.layer_norm.",
    r"\.ffn\.gate\.0\.": ".layer.1.DenseReluDense.wi_0.",
    r"\.ffn\.fc1\.": ".layer.1.DenseReluDense.wi_1.",
    r"\.ffn\.fc2\.": ".layer.1.DenseReluDense.wo.",
}


# -------------------------------------------------------------------------- their names become ours

def renamed(tensors: Tensors, patterns: dict) -> Tensors:
    """Each name with these regular expressions replaced, one after the other."""
    def name(key):
        for theirs, ours in patterns.items():
            key = re.sub(theirs, ours, key)
        return key
    return {name(key): value for key, value in tensors.items()}


def t5_names(tensors: Tensors) -> Tensors:
    tensors = renamed(tensors, T5_NAMES)
    if "shared.weight" in tensors:                       # one table with two names
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
    return tensors


def vision_tower_names(tensors: Tensors) -> Tensors:
    """VILA's names begin with vision_tower. or vision_tower.vision_model. or neither.

    Without SigLIP's pooling head, which the method does not use.
    """
    tensors = renamed(tensors, {r"^(vision_tower\.)?(vision_model\.)?": ""})
    return {name: value for name, value in tensors.items() if not name.startswith("head.")}


def projector_names(tensors: Tensors) -> Tensors:
    """VILA's layer 0 only rearranges and has no weights; ours start with its layer 1."""
    return renamed(tensors, {r"^layers\.(\d+)": lambda n: f"layers.{int(n[1]) - 1}"})


def boundary_names(tensors: Tensors) -> Tensors:
    """<img_st> of (D,), (1, D) or (rows, D) -> img_st, (D,) where it is one row, else (rows, D)."""
    return {key.strip("<>"): value.float().reshape(-1, value.shape[-1]).squeeze(0)
            for key, value in tensors.items()}


def trained_parts(tensors: Tensors) -> dict[str, Tensors]:
    """transformer/model.pt by part; what has none of their prefixes is of the part ""."""
    names = {"wan_model": "transformer", "adapter": "adapter", "ar_vision_head": "ar_head",
             "visual_context_adapter": "visual_context_adapter"}
    parts = defaultdict(dict)
    for key, value in tensors.items():
        prefix, _, rest = key.partition(".")
        part, name = (names[prefix], rest) if prefix in names else ("", key)
        parts[part][name] = value
    if "transformer" in parts:
        parts["transformer"] = convert_wan_transformer_to_diffusers(parts["transformer"])
    return parts


# -------------------------------------------------------------------------- what lies in which file

def part_files(folder: Path) -> list[tuple[str, Path, Callable[[Tensors], Tensors]]]:
    """(part, file or folder of shards, how its names become ours), all but transformer/model.pt.

    dict: they are ours.
    """
    wan, vila = folder / WAN, folder / VILA
    return [
        ("transformer", wan, convert_wan_transformer_to_diffusers),
        ("vae", wan / "Wan2.1_VAE.pth", convert_wan_vae_to_diffusers),
        ("text_encoder", wan / "models_t5_umt5-xxl-enc-bf16.pth", t5_names),
        ("vlm.llm", vila / "llm", dict),
        ("vlm.vision_tower", vila / "vision_tower", vision_tower_names),
        ("vlm.mm_projector", vila / "mm_projector", projector_names),
        ("adapter", folder / "adapter" / "model.pt", dict),
        ("ar_head", folder / "vision_head" / "vision_head" / "pytorch_model.bin", dict),
        ("boundary", folder / "special_tokens" / "tokens.pkl", boundary_names),
        ("unconditional", folder / "unconditioned_context" / "context.pkl", dict)]


def tokenizer_folders(folder: Path) -> dict[str, Path]:
    """Where the tokenizers of the VLM and of T5 lie."""
    return {"vlm": folder / VILA / "llm", "text": folder / WAN / "google" / "umt5-xxl"}


@dataclass
class Release:
    """What was found: tensors under our names, and what stands in the way of using them."""
    folder: Path
    parts: dict[str, Tensors] = field(default_factory=lambda: defaultdict(dict))
    files: dict[tuple[str, str], Path] = field(default_factory=dict)     # (part, key) -> its file
    tokenizers: dict[str, PreTrainedTokenizerFast] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)             # part -> error of its file
    notes: list[str] = field(default_factory=list)

    def read(self, part: str, path: Path, device: str) -> Tensors:
        """The tensors of a file; none, and `part` is unreadable, where that fails."""
        try:
            tensors, notes = read_checkpoint(path, device)
        except BadInput as error:
            self.unreadable[part] = str(error)
            return {}
        self.notes += [f"{path.relative_to(self.folder)}: {note}" for note in notes]
        # the prefixes that savers put around a model, and torch.compile around its parts
        return renamed(tensors, {r"_orig_mod\.": "", r"^((model_state_dict|module)\.)+": ""})

    def add(self, part: str, path: Path, tensors: Tensors) -> None:
        """Of one part, later files win over earlier ones, key by key."""
        self.parts[part].update(tensors)
        self.files.update({(part, key): path for key in tensors})


def read_release(folder: str | Path, device: str = "cpu") -> Release:
    """Every file of the directory. What cannot be read is in `unreadable`, to be named all at once.

    device: "cpu", or "meta" for names and shapes alone. Raises BadInput where it is another one.
    """
    release = Release(Path(folder))
    if not (release.folder / VILA).is_dir():
        raise BadInput(f"{folder}: is no released directory: there is no {VILA} in it")
    for part, path, our_names in part_files(release.folder):
        release.add(part, path, our_names(release.read(part, path, device)))
    trained = release.folder / TRAINED_FILE
    tensors = release.read("visual_context_adapter", trained, device)
    for part, of_part in trained_parts(tensors).items():
        release.add(part, trained, of_part)
    read_tokenizers(release)
    return release


def read_tokenizers(release: Release) -> None:
    """tokenizer.json as it is: AutoTokenizer would give T5's a pre-tokenizer of its own."""
    for name, home in tokenizer_folders(release.folder).items():
        try:
            release.tokenizers[name] = PreTrainedTokenizerFast.from_pretrained(
                home, local_files_only=True)
        except Exception as error:                       # the tokenizers library raises no other
            reason = " ".join(str(error).split())[:300]
            release.unreadable[f"{name} tokenizer"] = (
                f"{home}: its tokenizer cannot be read ({reason}); download it again")


def read_json(path: Path) -> dict:
    """What a JSON file says. Raises BadInput where it is broken."""
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise BadInput(f"{path}: is no JSON ({error}); download it again") from error


def vocabulary(release: Release) -> int | None:
    """Rows of the VLM's word embeddings: 128,256; 128,257 with [PAD]; or padded to a multiple."""
    table = release.parts["vlm.llm"].get("model.embed_tokens.weight")
    return None if table is None else len(table)


# ---------------------------------------------------------------------------- does it fit a preset?

def fitted_preset(release: Release, preset: Preset) -> Preset:
    """The preset with the vocabulary of the files."""
    rows = vocabulary(release) or preset.llama["vocab_size"]
    return replace(preset, llama=preset.llama | {"vocab_size": rows})


def expected_shapes(model: UnifiedModel, part: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a part's tensors; of those in WITH_ROWS, of one row."""
    if part == "unconditional":
        return {"vlm_last_hidden_states": (model.preset.llama["hidden_size"],),
                "text_emb": (model.preset.t5["d_model"],)}
    tensors = model.get_submodule(part).state_dict() if part else {}
    return {key: tuple(value.shape) for key, value in tensors.items()}


def part_problems(release: Release, model: UnifiedModel, part: str) -> list[str]:
    """Every key of one part that is unknown, of another shape, or in no file; its config.json."""
    if part in release.unreadable:
        return [release.unreadable[part]]
    found, expected = release.parts[part], expected_shapes(model, part)
    problems = [f"{release.files[part, key]}: {key} is unknown"
                for key in found.keys() - expected.keys() if not is_left_out(release, part, key)]
    for key, shape in expected.items():
        if key not in found:
            problems.append(f"{part}: {key} is in no file")
            continue
        is_shape = tuple(found[key].shape)
        if (is_shape[-1:] if part in WITH_ROWS else is_shape) != shape:
            problems.append(f"{release.files[part, key]}: {key} is {is_shape}, not {shape}")
    return problems + list(config_problems(release, model, part))


def is_left_out(release: Release, part: str, key: str) -> bool:
    """Whether a tensor that is unknown is no problem: the authors' code passes over it, too."""
    return part in WITH_ROWS or release.files[part, key] == release.folder / TRAINED_FILE


def left_out(release: Release, model: UnifiedModel) -> list[str]:
    """The tensors that the model does not need, and that are no problem."""
    names = []
    for part, tensors in release.parts.items():
        expected = expected_shapes(model, part)
        names += [f"{part}: {key}".removeprefix(": ") for key in tensors.keys() - expected.keys()
                  if is_left_out(release, part, key)]
    return sorted(names)


def config_problems(release: Release, model: UnifiedModel, part: str) -> Iterator[str]:
    """What a config.json of the VLM says, and the preset or `VILA_CONFIG` does not."""
    vila = release.folder / VILA
    file = vila / part.removeprefix("vlm.") / "config.json"
    if part == "vlm.mm_projector":
        for file in (vila / "config.json", *sorted(vila.glob("*/config.json"))):
            content = read_json(file) if file.is_file() else {}
            for key, value in VILA_CONFIG.items():
                if content.get(key, value) != value:
                    yield f"{file}: {key} is {content[key]}, and {value} is what is built here"
    elif part in SAME_CONFIG and file.is_file():
        ours = model.get_submodule(part).config
        theirs = type(ours).from_dict(read_json(file))   # with the library's defaults
        for key in SAME_CONFIG[part]:
            if getattr(theirs, key) != getattr(ours, key):
                yield (f"{file}: {key} is {getattr(theirs, key)}, "
                       f"and {getattr(ours, key)} in the preset")


def tokenizer_problems(release: Release) -> list[str]:
    """What of the two tokenizers cannot be used, or would be read otherwise than it was taught."""
    problems = [error for name, error in release.unreadable.items() if name.endswith("tokenizer")]
    homes = tokenizer_folders(release.folder)
    for name, tokenizer in release.tokenizers.items():
        ids = tokenizer(SENTENCE, add_special_tokens=False).input_ids
        text = tokenizer.decode(ids)
        if text.split() != SENTENCE.split():
            problems.append(f"{homes[name]}: its tokenizer makes {text[:80]!r} of {SENTENCE!r}; "
                            f"is it the release's own?")
    vlm, rows = release.tokenizers.get("vlm"), vocabulary(release)
    if vlm is None:
        return problems
    if rows is not None and len(vlm) > rows:
        problems.append(f"{homes['vlm']}: its tokenizer has {len(vlm):,d} tokens, "
                        f"and the word embeddings have {rows:,d} rows")
    for word in SINGLE_TOKENS:
        ids = vlm(word, add_special_tokens=False).input_ids
        if len(ids) != 1:
            problems.append(f"{homes['vlm']}: its tokenizer reads {word!r} as {len(ids)} tokens, "
                            f"and one is needed; is it the release's own?")
    return problems


def all_problems(release: Release, model: UnifiedModel) -> dict[str, list[str]]:
    """Everything that stops `convert`, by the row of the table that it belongs to."""
    problems = {part: part_problems(release, model, part) for part in (*PARTS, "unconditional")}
    problems["tokenizers"] = tokenizer_problems(release)
    return problems
