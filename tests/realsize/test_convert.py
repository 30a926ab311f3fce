"""The authors' directory at tiny sizes: every tensor arrives, what does not fit is named, and
nothing runs code."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from common.files import BadInput
from model import PARTS, UnifiedModel, load_model
from realsize import convert
from realsize.release import read_release
from realsize.tensors import read_checkpoint
from small import SMALL, a_clip, change, problems, read_model, write

pytestmark = pytest.mark.usefixtures("small")
ROWS = {"img_st": 6, "img_ed": 6, "ipl_st": 7, "ipl_ed": 7, "prp_st": 7, "prp_ed": 7}
CONTEXT = "unconditioned_context/context.pkl"
LLM, WAN = "ar_model/checkpoint/llm", "wan/wanxiang1_3b"
T5 = f"{WAN}/google/umt5-xxl"


# -------------------------------------------------------------------------------- as it should be

def test_their_names_are_theirs(released):
    """A few by heart, so that small.py's lists and the converter's cannot be wrong together; those
    of the DiT and the VAE are converted by diffusers."""
    wan = released / "wan" / "wanxiang1_3b"
    assert torch.load(wan / "models_t5_umt5-xxl-enc-bf16.pth").keys() >= {
        "token_embedding.weight", "blocks.1.attn.q.weight", "blocks.0.ffn.gate.0.weight",
        "blocks.0.pos_embedding.embedding.weight", "blocks.1.norm2.weight", "norm.weight"}
    projector = released / "ar_model" / "checkpoint" / "mm_projector" / "model.safetensors"
    assert "layers.1.weight" in load_file(projector)


def test_every_tensor_arrives(original, converted):
    model = load_model(str(converted), "wan1.3b")
    for name in PARTS:
        want = original.get_submodule(name).state_dict()
        got = model.get_submodule(name).state_dict()
        assert want.keys() == got.keys()
        for k, v in want.items():
            v = v.bfloat16().float() if (name, k) == ("boundary", "img_st") else v
            assert torch.equal(got[k], v), f"{name}.{k}"
    assert all(map(torch.equal, model.unconditional(), original.unconditional()))
    assert model.vlm.tokenizer.get_vocab() == original.vlm.tokenizer.get_vocab()


def test_the_base_has_what_was_not_trained(original, copied):
    change(copied / "transformer" / "model.pt",
           lambda t: t["module"].pop("wan_model.head.head.weight"))
    got, want = (x.transformer.proj_out for x in (read_model(copied), original))
    assert torch.equal(got.weight, want.weight + 1) and torch.equal(got.bias, want.bias)


# ---------------------------------------------------------------------- more than what is needed

def boundary_tokens():
    g = torch.Generator().manual_seed(3)
    return {f"<{name}>": torch.randn(rows, 24, generator=g) for name, rows in ROWS.items()}


@pytest.fixture(scope="module")
def untidy(released, tmp_path_factory):
    """All at once: rows, lists, numbers, strangers, a training's state, 128,257 words, wrappers."""
    folder = shutil.copytree(released, tmp_path_factory.mktemp("untidy") / "revise_ckpt")
    tokens = boundary_tokens() | {"<aud_st>": torch.ones(1, 24)}
    write(folder / "special_tokens" / "tokens.pkl", tokens)

    def as_lists(context):
        context["text_emb"] += [torch.zeros(9, 24)]
        context.update(text_emb_siglip2=[torch.zeros(2, 5)], prompts=["", ""], pooled=torch.ones(3))
    change(folder / CONTEXT, as_lists)
    change(folder / "adapter" / "model.pt", lambda t: t.update(
        epoch=3, optimizer_state_dict={"state": {0: {"exp_avg": torch.zeros(4)}}}))

    def deepspeed(t):
        t["module"] = {f"_orig_mod.{k}": v for k, v in t["module"].items()}
        t["module"] |= {"wan_model.blocks.0.gate": torch.zeros(2), "siglip2.fc": torch.zeros(2)}
        t.update(ds_version="0.16.4", ds_config={"zero": [1, 2]}, dtype=torch.float32,
                 param_shapes=[{"a": torch.Size([3])}], stray={"a": torch.zeros(2)})
    change(folder / "transformer" / "model.pt", deepspeed)

    def with_pad(llm):                                   # its two tables of words
        for name in llm.keys() & {"model.embed_tokens.weight", "lm_head.weight"}:
            llm[name] = F.pad(llm[name], (0, 0, 0, 128_257 - 600))
    for shard in (folder / LLM).glob("*.safetensors"):
        change(shard, with_pad)
    torch.save({"lr": Ellipsis}, folder / LLM / "training_args.bin")
    (folder / WAN / "._Wan2.1_VAE.pth").write_bytes(b"a mac's")
    head = folder / "vision_head" / "vision_head" / "pytorch_model.bin"
    change(head, lambda t: [t.update({f"module._orig_mod.{k}": t.pop(k)}) for k in list(t)])
    return folder


def test_a_directory_with_all_of_it_gives_a_model_that_samples(untidy, tmp_path, capsys, original):
    convert.main(["--from", str(untidy), "--to", str(tmp_path / "revise")])
    printed = capsys.readouterr().out
    for line in ("adapter/model.pt: left out epoch, optimizer_state_dict\n",
                 f"{CONTEXT}: left out prompts\n",
                 f"{CONTEXT}: the first entry is used: text_emb, of 2",
                 "no place for it: boundary: aud_st, siglip2.fc, stray.a, "
                 "transformer: blocks.0.gate",
                 "unconditional: pooled and 1 more\n"):
        assert line in printed, line
    model = UnifiedModel.from_preset("wan1.3b", weights=tmp_path / "revise")
    assert model.vlm.llm.lm_head.weight.shape == (128_257, 24)
    for part in ("transformer", "ar_head"):
        want = original.get_submodule(part).state_dict()
        got = model.get_submodule(part).state_dict()
        assert all(torch.equal(got[key], want[key]) for key in want)
    assert all(map(torch.equal, model.unconditional(), original.unconditional()))
    edited = model.sample(a_clip(SMALL), ["frost"], steps=2)
    assert edited.shape == a_clip(SMALL).shape and edited.isfinite().all()


def test_all_rows_of_the_boundary_tokens_are_in_the_context_in_order(untidy):
    model = read_model(untidy)
    latents, bridged = torch.randn(1, *SMALL.latent_shape), torch.randn(1, 4, 24)
    text, tokens = torch.randn(2, 24), boundary_tokens()
    context = model.context(latents, bridged, [text])[0]
    want = torch.cat([tokens["<img_st>"], model.visual_context_adapter(latents)[0],
                      tokens["<img_ed>"], tokens["<ipl_st>"], bridged[0], tokens["<ipl_ed>"],
                      tokens["<prp_st>"], text, tokens["<prp_ed>"]])
    assert torch.equal(context[:len(want)], want)
    assert len(context) == SMALL.context_length and context[len(want):].eq(0).all()


def test_the_first_text_of_the_empty_prompt_is_meant(copied):
    """text_emb as a tensor: its first entry, as of a list."""
    states = torch.randn(2, 4, 24)
    change(copied / CONTEXT, lambda t: t.update(text_emb=states))
    assert problems(copied) == []
    assert torch.equal(read_model(copied).unconditional()[1], states[0])


# ------------------------------------------------------------------------------ what is not right

NOTHING = "cannot be read as tensors .it holds no tensor, and only tensors and dicts of them"
NO_WORDS = {"type": "BPE", "vocab": {"<unk>": 0}, "merges": [], "unk_token": "<unk>"}
BEGIN = {"type": "Prepend", "prepend": "<|begin_of_text|>"}


def renames(word):
    """A token of the tokenizer has another name."""
    return lambda made: made.update(json.loads(json.dumps(made).replace(f'"{word}"', '"[OTHER]"')))


@pytest.mark.parametrize("file, edit, words", [
    ("transformer/model.pt", lambda t: t["module"].pop("visual_context_adapter.projection.bias"),
     ["visual_context_adapter: projection.bias is in no file"]),
    ("transformer/model.pt", lambda t: t["module"].update({"adapter.fc.0.bias": torch.zeros(5)}),
     ["model.pt: fc.0.bias is (5,), not (24,)"]),
    ("adapter/model.pt", lambda t: t.update(extra=torch.zeros(3)), ["extra is unknown"]),
    (CONTEXT, lambda t: t.update(text_emb=[torch.zeros(3, 5)]), ["text_emb is (3, 5), not (24,)"]),
    (f"{LLM}/config.json", lambda c: c.update(rope_theta=1e4, rms_norm_eps=.5),
     ["llm/config.json: rms_norm_eps is 0.5, and 1e-06 in the preset",
      "'rope_theta': 10000.0, 'rope_type': 'default'}, and {'rope_theta': 500000.0, "]),
    ("ar_model/checkpoint/config.json",
     lambda c: c.update(mm_vision_select_layer=-1, image_aspect_ratio="dynamic"),
     ["mm_vision_select_layer is -1, and -2 is", "image_aspect_ratio is dynamic, and resize"]),
    (f"{T5}/tokenizer.json", lambda t: t.update(model=NO_WORDS),
     ["umt5-xxl: its tokenizer makes '<unk><unk>"]),
    # the chat writes <|begin_of_text|> itself: the VLM must read it once
    (f"{LLM}/tokenizer.json", lambda t: t.update(normalizer=BEGIN),
     ["its tokenizer makes '<|begin_of_text|>What would"]),
    (f"{LLM}/tokenizer.json", renames("[GEN_VID]"), ["reads '[GEN_VID]' as "])])
def test_what_does_not_fit_is_named(copied, file, edit, words):
    change(copied / file, edit)
    found = problems(copied)
    assert len(found) == len(words) and all(word in line for word, line in zip(words, found))


def rows_of(printed):
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(cells[0], row)) for row in cells[2:]}


def test_all_that_is_missing_is_named_and_nothing_written(released, copied, tmp_path, capsys):
    convert.main(["--from", str(released)])
    assert {row["fits"] for row in rows_of(capsys.readouterr().out).values()} == {"yes"}
    missing = {"boundary": "special_tokens/tokens.pkl", "vae": f"{WAN}/Wan2.1_VAE.pth",
               "vlm.mm_projector": "ar_model/checkpoint/mm_projector/model.safetensors",
               "tokenizers": f"{T5}/tokenizer.json"}
    for file in missing.values():
        (copied / file).unlink()
    with pytest.raises(BadInput, match="it cannot be converted"):
        convert.main(["--from", str(copied), "--to", str(tmp_path / "to")])
    assert not (tmp_path / "to").exists()
    printed = capsys.readouterr().out
    assert {name for name, row in rows_of(printed).items() if row["fits"] == "NO"} == set(missing)
    for file in missing.values():
        assert f"does not fit: {copied}/{file.rpartition('/')[0]}" in printed


def test_only_headers_are_read(released):
    parts = read_release(released, "meta").parts
    assert all(tensor.is_meta for part, tensors in parts.items()
               if part not in ("boundary", "unconditional") for tensor in tensors.values())


@pytest.mark.parametrize("content, words", [
    ({"w": torch.zeros(2), "loss": np.float64(3)}, "names numpy.*, which is no tensor .* save its"),
    ({"x": [torch.zeros(2)]}, NOTHING)])
def test_files_without_tensors_or_with_more(tmp_path, content, words):
    for name in ("a.pkl", "a.pt"):
        write(tmp_path / name, content)
        with pytest.raises(BadInput, match=f"{name}: {words}"):
            read_checkpoint(tmp_path / name)


# ------------------------------------------------------------------------------- no code is run

class Evil:
    def __reduce__(self):
        return os.mkdir, ("was-here",)


@pytest.mark.parametrize("file", ["special_tokens/tokens.pkl", "transformer/model.pt"])
def test_no_pickle_runs_code(copied, tmp_path, monkeypatch, file):
    monkeypatch.chdir(tmp_path)
    write(copied / file, {"x": Evil()})
    found, = [line for line in problems(copied) if "might run code" in line]
    assert found.startswith(f"{copied}/{file}: names ") and "posix.mkdir" in found
    assert not (tmp_path / "was-here").exists()


def test_no_code_in_the_bytes_of_a_tensor(tmp_path, monkeypatch):
    """A pickled tensor holds a torch file, which holds a pickle of its own."""
    monkeypatch.chdir(tmp_path)
    inner = pickle.dumps(Evil(), protocol=2)

    class Nested:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (inner,)
    write(tmp_path / "a.pkl", {"x": Nested()})
    with pytest.raises(BadInput, match="a.pkl"):
        read_checkpoint(tmp_path / "a.pkl")
    assert not (tmp_path / "was-here").exists()


def test_pickled_tensors_are_read(tmp_path):
    content = {"a": torch.randn(2, 3).t(), "b": {"c": torch.arange(4, dtype=torch.bfloat16),
                                                 "d": torch.nn.Parameter(torch.ones(2))}}
    write(tmp_path / "a.pkl", content)
    torch.save(content, tmp_path / "b.pkl")              # a torch file under that name
    for name in ("a.pkl", "b.pkl"):
        got, _ = read_checkpoint(tmp_path / name)
        assert got.keys() == {"a", "b.c", "b.d"} and got["b.c"].dtype == torch.bfloat16
        assert torch.equal(got["a"], content["a"]) and torch.equal(got["b.d"], torch.ones(2))
    (tmp_path / "a.pkl").write_bytes((tmp_path / "a.pkl").read_bytes()[:-9])
    with pytest.raises(BadInput, match="cannot be read as tensors"):
        read_checkpoint(tmp_path / "a.pkl")


# ------------------------------------------------------------------------------------- tokenizers

def test_the_tokenizer_is_tokenizer_json(copied, tmp_path):
    """Words begin with a space but for the first; transformers' own would give it one, too."""
    letters = [(letter, -3.) for letter in "▁?Wabcdefghijklmnopqrstuvwxyz"]
    words = [("▁frost", -4.), ("frost", -4.5)]
    made = Tokenizer(models.Unigram([("<pad>", 0.), ("</s>", 0.), ("<unk>", 0.), *letters, *words],
                                    unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    made.decoder = decoders.Metaspace(prepend_scheme="never")
    made.save(str(copied / T5 / "tokenizer.json"))
    write(copied / T5 / "tokenizer_config.json",
          {"tokenizer_class": "T5TokenizerFast", "eos_token": "</s>", "pad_token": "<pad>"})
    assert problems(copied) == []
    read_model(copied).save_pretrained(tmp_path / "model")
    read = UnifiedModel.from_pretrained(tmp_path / "model").text_tokenizer
    assert read("frost and frost").input_ids == made.encode("frost and frost").ids
    assert read.convert_ids_to_tokens(read("frost").input_ids) == ["frost"]
