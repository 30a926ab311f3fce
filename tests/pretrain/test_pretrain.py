"""Pretraining: what is taught and asked, the losses by plain loops, and two steps of each stage."""

import importlib
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import pretrain.harden
import pretrain.vae
from critic import THINK, Critic
from model import TRAINED, load_model
from presets import PRESETS
from pretrain import heads, lessons, stage
from pretrain.chats import teach, token_ids, verdict_row, world_tokenizer
from pretrain.lessons import grade, vlm_frames, vlm_lesson
from pretrain.vae import decode_unclamped, vae_step
from pretrain.vlm import order
from runs import read_log
from tiny import world

TINY = PRESETS["tiny"]
WIDTH = TINY.llama["hidden_size"]
FLAGS = {"vae": ["--items", "2", "--batch", "2"],
         "vlm": ["--items", "2", "--batch", "2", "--draft-items", "1", "--draft-steps", "1"],
         "base": ["--items", "2", "--batch", "2"],
         "harden": ["--items", "2", "--batch", "4"]}


@pytest.fixture(scope="module")
def small_world():
    """Few texts for the tokenizer, and no processes for the renderer."""
    phrases = [phrase for rules in world.RULES.values() for rule in rules
               for phrase in rule.phrases]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "all_texts", lambda: phrases)
        patch.setattr(lessons, "ProcessPoolExecutor", lambda *settings: ThreadPoolExecutor(1))
        yield


@pytest.fixture
def vlm(tiny, small_world, monkeypatch):
    monkeypatch.setattr(tiny.vlm, "tokenizer", world_tokenizer())
    return tiny.vlm


@pytest.mark.parametrize("seen", ["", "it is done and the rest is kept"])
@pytest.mark.parametrize("think", THINK)
def test_what_is_taught_is_what_is_asked(tiny, vlm, monkeypatch, think, seen):
    """Token by token: the same text, cut at another place, can be other tokens."""
    instruction = "a hard frost came"
    source, edited = torch.full((1, 3, WIDTH), 1.), torch.full((1, 3, WIDTH), 2.)
    thought = "the water turns to ice"
    row = verdict_row(think, source[0], edited[0], instruction, thought, seen, 1.)
    verdict, = [k for k, (_, role) in enumerate(row) if role == "verdict"]
    taught, _ = vlm.join([[part for part, _ in row[:verdict]]])
    asked, join = [], vlm.join
    monkeypatch.setattr(vlm, "see", lambda video: video)
    monkeypatch.setattr(vlm, "join", lambda rows: asked.append(join(rows)[0]) or join(rows))
    said = {"expect": thought, "none": "", "full": f"{thought} . {seen}" if seen else ""}[think]
    Critic(tiny, think).margin(source, edited, [instruction], [said])
    asked = torch.cat(asked, 1)
    assert asked.shape == taught.shape and torch.equal(asked, taught)


def test_losses_against_one_row_at_a_time(vlm):
    """The mean log-probability of what is to be written, without padding or batches."""
    g = torch.Generator().manual_seed(0)
    source, edited = torch.randn(2, 3, WIDTH, generator=g)
    rows = [verdict_row("expect", source, edited, "frost came", "it is ice", "there is ice", .9),
            verdict_row("none", source, edited, "wait", "", "", .2),
            verdict_row("full", source, edited, "wait", "it is snow", "nothing", .3)]
    grades = torch.tensor([.9, .2, .3])
    yes, no = vlm.tokenizer.convert_tokens_to_ids(["Yes", "No"])
    written, verdicts, margins = [], [], []
    for row, y in zip(rows, grades):
        embeddings, mask = vlm.join([[part for part, _ in row]])
        said = vlm.read(embeddings, mask).logits[0].log_softmax(-1)
        position = 0
        for part, role in row:
            ids = token_ids(vlm, part)
            before = said[position - 1]                  # a position says the token after it
            if role == "learn":
                written += [said[position + k - 1, token] for k, token in enumerate(ids)]
            if role == "verdict":
                assert ids == [yes if y > .5 else no]
                verdicts.append(-y * before[yes] - (1 - y) * before[no])
                margins.append(before[yes] - before[no])
            position += len(ids)
    taught = teach(vlm, rows, grades)
    assert taught.text_loss.item() == pytest.approx(-torch.stack(written).mean().item(), abs=1e-4)
    verdict_loss = torch.stack(verdicts).mean().item()
    assert taught.verdict_loss.item() == pytest.approx(verdict_loss, abs=1e-4)
    assert taught.margin.tolist() == pytest.approx(torch.stack(margins).tolist(), abs=1e-4)
    assert taught.there.shape == taught.expected.shape == taught.found.shape == (1, 3, WIDTH)


# ------------------------------------------------------------------------------ the dense questions

def test_comparing_asks_where_the_edit_differs_from_the_target(tiny, monkeypatch):
    """Logits that say so cost little, the opposite much."""
    lesson = vlm_lesson(0)
    frames = vlm_frames(lesson["target"])
    place = frames[:, :, 8:16, 16:24]                    # one token's, in all frames
    place.copy_(-place.sign())
    far = torch.zeros(1, 48, 4)
    far[:, 1 * 4 + 2::16] = 1
    of_vlm, losses = heads.Heads(tiny.vlm), []
    for sign in (1, -1):
        monkeypatch.setattr(of_vlm, "is_another", lambda states: sign * (40 * far - 20))
        losses.append(heads.compares(of_vlm, torch.zeros(1, 48, 1), frames[None], [lesson]).item())
    assert losses[0] < 1e-6 and losses[1] == pytest.approx(20)


def test_order():
    margin = torch.tensor([2., 1., 0., 3., 5., 5.], requires_grad=True)
    grades = torch.tensor([.9, .1, .9, .1, .5, .4])              # in order, not in order, too alike
    loss, right = order(margin, grades)
    assert loss.item() == pytest.approx((math.log1p(math.exp(-1)) + math.log1p(math.exp(3))) / 3)
    assert right.item() == .5


# -------------------------------------------------------------------------------------- the lessons

def test_grades_are_the_logistic_of_overall_minus_7():
    triplet = world.make_triplet(0, "rave", "train")
    assert grade(triplet, triplet.target) == pytest.approx(1 / (1 + math.exp(-3)), abs=1e-4)
    assert grade(triplet, triplet.source) == pytest.approx(1 / (1 + math.exp(7)), abs=1e-4)


# --------------------------------------------------------------------------------------- the stages

def run_stage(name: str, out: Path, *flags: str) -> Path:
    """Two steps; returns the model's folder."""
    module = importlib.import_module(f"pretrain.{name}")
    module.main([*FLAGS[name], "--steps", "2", "--save-every", "1", "--out", str(out), *flags])
    return out / "model"


@pytest.fixture(scope="module")
def stages(small_world, tmp_path_factory) -> dict[str, Path]:
    """The model's folder of each stage, which begins with what the one before wrote."""
    out, made = tmp_path_factory.mktemp("stages"), {}
    made["vae"] = run_stage("vae", out / "vae")
    made["vlm"] = run_stage("vlm", out / "vlm", "--weights", str(made["vae"]))
    made["base"] = run_stage("base", out / "base", "--weights", str(made["vlm"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain.harden, "HEAD_STEPS", 1)
        made["harden"] = run_stage("harden", out / "harden", "--weights", str(made["base"]))
    return made


def moved_parts(before, after) -> set[str]:
    """The parts of a model of which some parameter is another."""
    return {k.split(".")[0] for k, p in after.named_parameters()
            if not torch.equal(p, before.get_parameter(k))}


def test_each_stage_trains_its_own_part(stages):
    """What they are good for only hours can show."""
    for folder in stages.values():
        assert all(math.isfinite(row["loss"]) for row in read_log(folder.parent))
    vae = load_file(stages["vae"] / "vae" / "diffusion_pytorch_model.safetensors")
    vlm, base, hardened = (load_model(stages[name]) for name in ("vlm", "base", "harden"))
    generator = {*TRAINED, "ar_head", "adapter", "boundary", "text_encoder"}
    assert moved_parts(vlm, base) == generator
    assert moved_parts(base, hardened) == {"vlm"}
    assert all(torch.equal(p, vae[k].float()) for k, p in base.vae.named_parameters())
    std = base.vae.config.latents_std
    assert min(std) > 0 and std != TINY.vae["latents_std"]
    grey = torch.zeros(1, TINY.frames, 3, TINY.height, TINY.width)
    assert base.sample(grey, ["wait"], steps=1).isfinite().all()


def test_a_stopped_vae_goes_on_bit_for_bit(stages, tmp_path, monkeypatch):
    def stop_at_step_1(vae, x, step, generator):
        if step == 1:
            raise KeyboardInterrupt
        return vae_step(vae, x, step, generator)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretrain.vae, "vae_step", stop_at_step_1)
        run_stage("vae", tmp_path)
    assert not (tmp_path / "model").exists()
    stopped = run_stage("vae", tmp_path) / "vae" / "diffusion_pytorch_model.safetensors"
    assert stopped.read_bytes() == (stages["vae"] / "vae" / stopped.name).read_bytes()


def test_decode_unclamped(tiny):
    """Clamped, it is what the library decodes."""
    z = torch.randn(2, *TINY.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want, got = tiny.vae.decode(300 * z).sample, decode_unclamped(tiny.vae, 300 * z)
    assert got.abs().max() > 1 and torch.equal(got.clamp(-1, 1), want)


def test_muon_gets_the_matrices_between_embeddings_and_heads(tiny):
    params = dict(tiny.vlm.named_parameters())
    matrices = stage.hidden_matrices(params)
    assert all(params[name].ndim == 2 for name in matrices)
    assert "llm.model.layers.0.self_attn.q_proj.weight" in matrices
    assert "llm.model.embed_tokens.weight" not in matrices
    assert "vision_tower.embeddings.position_embedding.weight" not in matrices
    both = stage.optimizers(params, 1e-3, .01, matrices)
    n = [len(optimizer.param_groups[0]["params"]) for optimizer in both]         # AdamW, Muon
    assert n == [len(params) - len(matrices), len(matrices)]
