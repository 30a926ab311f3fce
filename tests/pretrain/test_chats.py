"""What the VLM is taught: the critic's chats, token by token; losses against plain loops."""

import math

import pytest
import torch

from critic import THINK, Critic
from presets import PRESETS
from pretrain import heads
from pretrain.chats import teach, token_ids, verdict_row, world_tokenizer
from pretrain.lessons import grade, vlm_frames, vlm_lesson
from pretrain.vlm import order
from tiny.world import make_triplet

TINY = PRESETS["tiny"]
WIDTH = TINY.llama["hidden_size"]


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
    triplet = make_triplet(0, "rave", "train")
    assert grade(triplet, triplet.target) == pytest.approx(1 / (1 + math.exp(-3)), abs=1e-4)
    assert grade(triplet, triplet.source) == pytest.approx(1 / (1 + math.exp(7)), abs=1e-4)
