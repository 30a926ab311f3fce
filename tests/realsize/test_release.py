"""What the real files may hold that the tidy directory of test_convert does not: all of it at once."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.files import BadInput
from model import UnifiedModel
from presets import PRESETS
from realsize import check, convert
from realsize.tensors import TensorUnpickler, read_checkpoint
from small import SMALL, write

pytestmark = pytest.mark.usefixtures("small")
ROWS = {"img_st": 6, "img_ed": 6, "ipl_st": 7, "ipl_ed": 7, "prp_st": 7, "prp_ed": 7}      # a sibling's


def boundary_tokens():
    g = torch.Generator().manual_seed(3)
    return {f"<{name}>": torch.randn(rows, 24, generator=g) for name, rows in ROWS.items()}


def change(path, edit):
    """Rewrite a file with its content edited."""
    if path.suffix == ".pkl":
        content = TensorUnpickler(path.open("rb")).load()
    elif path.suffix == ".safetensors":
        content = load_file(path)
    else:
        content = torch.load(path)
    edit(content)
    write(path, content)


@pytest.fixture(scope="module")
def untidy(released, tmp_path_factory):
    """Boundary tokens of several rows, a list, numbers and an optimizer's state beside weights, 128,257 words."""
    folder = tmp_path_factory.mktemp("untidy") / "revise_ckpt"
    shutil.copytree(released, folder)
    write(folder / "special_tokens" / "tokens.pkl", boundary_tokens())

    def as_lists(context):
        context["text_emb"] = [context["text_emb"], torch.zeros(9, 24)]
        context["text_emb_siglip2"] = [context["text_emb_siglip2"]]
    change(folder / "unconditioned_context" / "context.pkl", as_lists)
    change(folder / "adapter" / "model.pt", lambda t: t.update(
        epoch=3, step=12_000, optimizer_state_dict={"state": {0: {"exp_avg": torch.zeros(4)}}}))
    change(folder / "transformer" / "model.pt", lambda t: t.update(
        ds_version="0.16.4", global_steps=7, lr_scheduler=None, ds_config={"zero": [1, 2]},
        param_shapes=[{"a": torch.Size([3])}], sparse_tensor_module_names={"a"}, dtype=torch.float32))

    def more_words(llm):
        for name in llm.keys() & {"model.embed_tokens.weight", "lm_head.weight"}:
            rest = torch.randn(128_257 - 600, 24, generator=torch.Generator().manual_seed(4))
            llm[name] = torch.cat([llm[name], rest])
    for shard in sorted((folder / "ar_model" / "checkpoint" / "llm").glob("*.safetensors")):
        change(shard, more_words)
    return folder


def test_a_directory_with_all_of_it_gives_a_model_that_samples(untidy, tmp_path, capsys):
    convert.main(["--from", str(untidy), "--to", str(tmp_path / "revise")])
    printed = capsys.readouterr().out
    assert "adapter/model.pt: left out epoch, optimizer_state_dict, step\n" in printed
    for name in ("ds_version", "global_steps", "lr_scheduler", "ds_config", "param_shapes"):
        assert name in printed
    assert "its first entry is used: text_emb_siglip2, of 1; text_emb, of 2" in printed
    assert "boundary tokens, rows each: img_st 6, img_ed 6, ipl_st 7, ipl_ed 7, prp_st 7, prp_ed 7" in printed
    assert "the VLM's vocabulary has 128,257 rows" in printed
    model = UnifiedModel.from_preset("wan1.3b", weights=tmp_path / "revise")
    assert model.vlm.llm.lm_head.weight.shape == (128_257, 24)
    source = torch.rand(1, SMALL.frames, 3, SMALL.height, SMALL.width) * 2 - 1
    edited = model.sample(source, ["frost"], steps=2)
    assert edited.shape == source.shape and edited.isfinite().all()


def test_all_rows_of_the_boundary_tokens_are_in_the_context_in_order(untidy):
    model = convert.read_released(untidy)
    latents, bridged = torch.randn(1, *SMALL.latent_shape), torch.randn(1, 4, 24)
    text, tokens = torch.randn(2, 24), boundary_tokens()
    context = model.context(latents, bridged, [text])[0]
    visual = model.visual_context_adapter(latents)[0]
    want = torch.cat([tokens["<img_st>"], visual, tokens["<img_ed>"],
                      tokens["<ipl_st>"], bridged[0], tokens["<ipl_ed>"],
                      tokens["<prp_st>"], text, tokens["<prp_ed>"]])
    assert torch.equal(context[:len(want)], want)
    assert len(context) == SMALL.context_length and context[len(want):].eq(0).all()


def test_the_first_of_a_list_is_meant(untidy, original):
    unconditional = convert.read_released(untidy).unconditional()
    assert all(torch.equal(a, b) for a, b in zip(unconditional, original.unconditional()))


@pytest.mark.parametrize("rows", [600, 601, 640])
def test_the_vocabulary_is_the_files(released, tmp_path, rows):
    """As the tokenizer says, with [PAD], and padded to a multiple."""
    folder = tmp_path / "revise_ckpt"
    shutil.copytree(released, folder)

    def resized(llm):
        for name in llm.keys() & {"model.embed_tokens.weight", "lm_head.weight"}:
            llm[name] = torch.cat([llm[name], torch.ones(rows - 600, 24)])
    for shard in (folder / "ar_model" / "checkpoint" / "llm").glob("*.safetensors"):
        change(shard, resized)
    model = convert.read_released(folder)
    assert model.preset.llama["vocab_size"] == model.vlm.llm.config.vocab_size == rows


def test_a_table_smaller_than_the_tokenizer(released, tmp_path):
    folder = tmp_path / "revise_ckpt"
    shutil.copytree(released, folder)

    def cut(llm):
        for name in llm.keys() & {"model.embed_tokens.weight", "lm_head.weight"}:
            llm[name] = llm[name][:200].clone()
    for shard in (folder / "ar_model" / "checkpoint" / "llm").glob("*.safetensors"):
        change(shard, cut)
    with pytest.raises(BadInput, match="tokenizer has [0-9]+ tokens, and the word embeddings have 200 rows"):
        convert.read_released(folder)


@pytest.mark.parametrize("word", ["[GEN_VID]", "Yes", "No"])
def test_words_that_must_be_one_token(released, tmp_path, word):
    folder = tmp_path / "revise_ckpt"
    shutil.copytree(released, folder)
    file = folder / "ar_model" / "checkpoint" / "llm" / "tokenizer.json"
    file.write_text(file.read_text().replace(f'"{word}"', '"[OTHER]"'))
    with pytest.raises(BadInput, match="tokens, and one is needed") as error:
        convert.read_released(folder)
    assert repr(word) in str(error.value)


def test_a_tensor_that_fits_nowhere_is_still_an_error(untidy, tmp_path):
    folder = tmp_path / "revise_ckpt"
    shutil.copytree(untidy, folder)
    change(folder / "transformer" / "model.pt", lambda t: t.update(stray={"a": torch.zeros(2)}))
    change(folder / "adapter" / "model.pt", lambda t: t.update(extra=torch.zeros(3)))
    with pytest.raises(BadInput) as error:
        convert.read_released(folder)
    assert "stray.a is unknown" in str(error.value) and "extra is unknown" in str(error.value)


@pytest.mark.parametrize("content", [
    {"weights": torch.zeros(2), "note": [1, 2]}, {"weights": torch.zeros(2), "x": {3: 4}},
    {"weights": torch.zeros(2), "x": (torch.zeros(2),)}])
def test_what_is_not_known_to_be_harmless_is_an_error(tmp_path, content):
    for name in ("a.pkl", "a.pt"):
        write(tmp_path / name, content)
        with pytest.raises(BadInput, match="only tensors and dicts of them are read"):
            read_checkpoint(tmp_path / name)


# -------------------------------------------------------------------------------------------------------- realsize.check

def run_check(folder, capsys):
    """Printed text, and the complaint that becomes exit code 2 (None: none)."""
    complaint = None
    try:
        check.main(["--weights", str(folder)])
    except BadInput as error:
        complaint = str(error)
    return capsys.readouterr().out, complaint


def rows_of(printed):
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(cells[0], row)) for row in cells[2:]}


@pytest.mark.parametrize("which", ["released", "untidy"])
def test_check_of_what_converts(request, capsys, which, original):
    printed, complaint = run_check(request.getfixturevalue(which), capsys)
    table = rows_of(printed)
    assert complaint is None and {row["fits"] for row in table.values()} == {"yes"}
    dit = sum(p.numel() for p in original.transformer.parameters())
    assert f"{dit:,d}, float32" in table["transformer"]["found"]
    assert table["unconditional"]["found"].count("(") == 3
    assert "in memory: " in printed


def test_check_counts_memory_by_the_dtype_of_use(released, capsys, monkeypatch):
    from dataclasses import replace
    size = {}
    for bf16 in (False, True):
        monkeypatch.setitem(PRESETS, "wan1.3b", replace(SMALL, bf16=bf16))
        monkeypatch.setattr(check, "GB", 1)
        table = rows_of(run_check(released, capsys)[0])
        size[bf16] = {part: float(row["memory"].split()[0]) for part, row in table.items() if row["memory"]}
    assert size[True]["transformer"] == size[False]["transformer"]
    assert size[True]["vae"] == size[False]["vae"]
    assert size[True]["vlm.llm"] == size[False]["vlm.llm"] / 2 and size[True]["adapter"] == size[False]["adapter"] / 2


@pytest.mark.parametrize("file, part", [
    ("special_tokens/tokens.pkl", "boundary"), ("transformer/model.pt", "visual_context_adapter"),
    ("unconditioned_context/context.pkl", "unconditional"), ("wan/wanxiang1_3b/Wan2.1_VAE.pth", "vae"),
    ("ar_model/checkpoint/mm_projector/model.safetensors", "vlm.mm_projector"),
    ("ar_model/checkpoint/llm/tokenizer_config.json", "tokenizers")])
def test_check_names_what_is_missing_where_convert_stops(released, tmp_path, capsys, file, part):
    folder = tmp_path / "revise_ckpt"
    shutil.copytree(released, folder)
    (folder / file).unlink()
    printed, complaint = run_check(folder, capsys)
    table = rows_of(printed)
    assert complaint and "convert would stop" in complaint
    assert [name for name, row in table.items() if row["fits"] == "NO"] == [part]
    assert "does not fit: " in printed and file.rpartition("/")[0] in printed
    with pytest.raises(BadInput):
        convert.main(["--from", str(folder), "--to", str(tmp_path / "to")])
    assert not (tmp_path / "to").exists()


def test_check_shows_a_few_of_many_and_other_shapes(released, tmp_path, capsys):
    folder = tmp_path / "revise_ckpt"
    shutil.copytree(released, folder)
    write(folder / "wan" / "wanxiang1_3b" / "Wan2.1_VAE.pth", {"stranger": torch.zeros(2)})
    change(folder / "special_tokens" / "tokens.pkl", lambda t: t.update({"<img_st>": torch.zeros(6, 5)}))
    printed, complaint = run_check(folder, capsys)
    assert complaint and "stranger is unknown" in printed and "more like these" in printed
    assert "img_st is (6, 5), not (24,)" in printed


def test_check_reads_no_tensor(released, capsys, monkeypatch):
    """Headers alone: the numbers of the large files can be damaged, and it does not see it."""
    def refuse(*args, **named):
        raise AssertionError("a tensor was read")
    monkeypatch.setattr("realsize.tensors.load_file", refuse)
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda file, map_location, **named: load(
        file, map_location=map_location, **named) if map_location == "meta" or not hasattr(file, "suffix") else refuse())
    assert run_check(released, capsys)[1] is None


def test_check_of_a_converted_folder(converted, tmp_path):
    with pytest.raises(BadInput, match="is a model folder, converted already"):
        check.main(["--weights", str(converted)])
    with pytest.raises(BadInput, match="there is no such directory"):
        check.main(["--weights", str(tmp_path / "none")])
