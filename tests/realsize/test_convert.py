"""The authors' directory at tiny sizes: every tensor arrives, and nothing runs code."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file

from common.files import BadInput
from model import PARTS, load_model
from realsize.tensors import read_checkpoint
from small import change, problems, read_model, write

pytestmark = pytest.mark.usefixtures("small")


def same(model, original):
    for name in PARTS:
        want = original.get_submodule(name).state_dict()
        got = model.get_submodule(name).state_dict()
        assert want.keys() == got.keys()
        for k, v in want.items():
            v = v.bfloat16().float() if (name, k) == ("boundary", "img_st") else v
            assert torch.equal(got[k], v), f"{name}.{k}"
    pairs = zip(model.unconditional(), original.unconditional(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert model.vlm.tokenizer.get_vocab() == original.vlm.tokenizer.get_vocab()


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
    same(load_model(str(converted), "wan1.3b"), original)
    record = json.loads((converted / "model.json").read_text())
    assert record["preset"] == "wan1.3b" and record["frozen"] is None


def test_the_base_has_what_was_not_trained(original, copied):
    change(copied / "transformer" / "model.pt",
           lambda t: t["module"].pop("wan_model.head.head.weight"))
    got, want = (x.transformer.proj_out for x in (read_model(copied), original))
    assert torch.equal(got.weight, want.weight + 1) and torch.equal(got.bias, want.bias)


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
