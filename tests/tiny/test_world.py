"""The tiny world: deterministic, hidden operations, honest splits, an oracle to be trusted."""

import hashlib
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import uniform_filter

from common.video import to_bytes
from tiny import world
from tiny.contact_sheet import contact_sheet, drawable
from tiny.draw import paint, render
from tiny.drift import drifted
from tiny.rules import RULES
from tiny.scene import apply, caption
from tiny.world import MISSES, SPLITS, SUBSETS, judge, make_triplet

WIGGLE = torch.tensor([.2, -.2] * 4 + [0.])[:, None, None, None]                  # averages to zero


@pytest.fixture(scope="module")
def triplets():
    """Every rule of both subsets at least once."""
    return [make_triplet(i, subset, "test")
            for subset, n in (("rave", 16), ("icvg", 12)) for i in range(n)]


# ------------------------------------------------------------------------------------ what is asked

def test_a_triplet_depends_on_split_subset_and_index_and_on_nothing_else():
    for subset in ("rave", "icvg", "literal", "cross"):
        a, b = make_triplet(5, subset, "val"), make_triplet(5, subset, "val")
        assert a.before == b.before and a.instruction == b.instruction and a.edit == b.edit
        assert torch.equal(a.source, b.source) and torch.equal(a.target, b.target)
    scenes = [make_triplet(i, subset, split).before
              for subset in SUBSETS for split in SPLITS for i in (0, 1)
              if (subset, split) != ("cross", "train")]
    assert len(set(scenes)) == len(scenes)


def test_it_is_the_world_that_the_weights_were_trained_on():
    """Hashes of what the first version drew, wrote and scored (to four digits)."""
    words, pixels, scores = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    places = (("rave", "test"), ("icvg", "train"), ("cross", "val"), ("literal", "test"))
    for subset, split in places:
        for index in range(8):
            triplet = make_triplet(index, subset, split)
            for text in (triplet.instruction, triplet.literal, triplet.thought, triplet.rule,
                         caption(triplet.after)):
                words.update(text.encode())
            miss, done = world.near_miss(triplet, MISSES[index % 7], np.random.default_rng(index))
            words.update(done.encode())
            for video in (triplet.source, triplet.target, miss):
                pixels.update(to_bytes(video).numpy().tobytes())
            pixels.update(paint(triplet.after)[1].astype(np.uint8).tobytes())
            digits = [f"{score:.4f}" for score in judge(triplet, miss).values()]
            scores.update(" ".join(digits).encode())
    assert [digest.hexdigest()[:16] for digest in (words, pixels, scores)] == [
        "c95eedb0f807839c", "853dc921cdd74a96", "2795178a6e744126"]


@pytest.mark.parametrize("subset, split", [
    *[(subset, split) for subset in ("rave", "icvg") for split in SPLITS],
    ("cross", "val"), ("cross", "test")])
def test_held_out_phrases_and_places_are_in_cross_alone(subset, split):
    kind = "icvg" if subset == "icvg" else "rave"
    rules, seen = {rule.name: rule for rule in RULES[kind]}, set()
    for i in range(16 if kind == "rave" else 12):
        t = make_triplet(i, subset, split)
        rule = rules[t.rule]
        seen.add(rule.name)
        held_out = re.escape(rule.phrases[4]).replace(re.escape("{n}"), "the .*")
        assert bool(re.fullmatch(held_out, t.instruction)) == (subset == "cross")
        assert (t.before.place == rule.away) == (subset == "cross")
    assert seen == set(rules)


# --------------------------------------------------------------------------------------- the oracle

def test_the_target_is_right_and_the_source_is_not(triplets):
    for t in triplets:
        right, nothing = judge(t, t.target), judge(t, t.source)
        assert set(right) == {"EA", "GN", "GR"} | ({"PC"} if t.subset == "rave" else set())
        assert all(x == pytest.approx(10, abs=1e-3) for x in right.values()), (t.rule, right)
        assert nothing.pop("EA") == pytest.approx(0, abs=1e-3), t.rule
        assert all(x == pytest.approx(10, abs=1e-3) for x in nothing.values()), (t.rule, nothing)


def test_the_right_edit_on_the_wrong_object(triplets):
    tried = set()
    for t in triplets:
        for other in range(len(t.before.things)):
            if t.subset == "icvg" or t.edit.op not in ("remove", "paint", "drop", "move"):
                continue
            video = render(apply(t.before, t.edit._replace(i=other)))
            if other != t.edit.i and (video - t.source).abs().max() > .2:
                scores = judge(t, video)                 # they may share a block
                assert scores["EA"] < .1 and scores["PC"] < 9.9, (t.rule, scores)
                tried.add(t.edit.op)
    assert tried >= {"remove", "paint", "move"}


def test_flicker_counts_in_naturalness_alone(triplets):
    for t in triplets:
        for video in (t.source, t.target):
            calm, scores = judge(t, video), judge(t, video + WIGGLE)
            clipped = judge(t, (video + WIGGLE / 4).clamp(-1, 1))            # what a model can show
            assert scores.pop("GN") < 2 and clipped.pop("GN") < 9 and calm.pop("GN") == 10
            assert scores == pytest.approx(calm, abs=1e-3), t.rule
            assert clipped == pytest.approx(calm, abs=1), t.rule
        assert judge(t, t.target + WIGGLE)["GN"] < judge(t, t.target + .3 * WIGGLE)["GN"] < 10


def test_noise_and_blur_lower_realism(triplets):
    noise = torch.randn(triplets[0].target.shape, generator=torch.Generator().manual_seed(0))
    blur = lambda x, k: F.avg_pool2d(x, k, 1, k // 2, count_include_pad=False)
    for t in triplets:
        noisy = [t.target + a * noise for a in (.05, .15, .3)]
        blurred = [blur(t.target, k) for k in (3, 7)]
        for worse, last in ((noisy, 1.5), (blurred, 9)):
            gr = [10.] + [judge(t, video)["GR"] for video in worse]
            assert all(a - b > .05 for a, b in zip(gr, gr[1:])) and gr[-1] < last, (t.rule, gr)


@pytest.mark.parametrize("kind", [*MISSES, "any noise"])
def test_no_score_falls_on_the_way_from_wrong_to_right(triplets, kind):
    rng = np.random.default_rng(0)
    for t in triplets:
        if kind == "any noise":
            wrong = torch.from_numpy(rng.uniform(-1, 1, t.target.shape)).float()
        else:
            wrong, _ = world.near_miss(t, kind, rng)
        way = [judge(t, wrong * (1 - a) + t.target * a) for a in (0., .4, .8)]
        for score in way[0]:
            climb = [step[score] for step in way] + [10.]
            assert all(b >= a - 1e-3 for a, b in zip(climb, climb[1:])), (t.rule, score, climb)


def test_half_an_edit_is_worth_half(triplets):
    for t in triplets:
        assert judge(t, (t.source + t.target) / 2)["EA"] == pytest.approx(5, abs=.01), t.rule


def test_what_the_oracle_cannot_score_raises(triplets):
    t = triplets[0]
    with pytest.raises(ValueError, match="the oracle needs"):
        judge(t, t.target[:-1])
    with pytest.raises(ValueError, match="not finite"):
        judge(t, torch.full_like(t.target, float("nan")))


def test_drift_is_a_blur_a_lower_contrast_and_a_tint():
    video = make_triplet(3, "rave", "train").target
    blurred = uniform_filter(video.numpy(), (0, 0, 3, 3))
    tint = np.array([.25, -.05, -.25]).reshape(3, 1, 1)
    expected = (.75 * (.5 * video.numpy() + .5 * blurred) + tint).clip(-1, 1)
    inside = (..., slice(1, -1), slice(1, -1))
    assert np.allclose(drifted(video)[inside].numpy(), expected[inside], atol=1e-6)
    flat = drifted(torch.zeros(1, 3, 8, 8))              # has no edge
    assert torch.allclose(flat, torch.tensor(tint).float().expand(1, 3, 8, 8))


# -------------------------------------------------------------------------------- the contact sheet

def test_no_instruction_becomes_boxes():
    assert drawable("the moving one") == ("the moving one", ["DejaVu Sans"])
    assert drawable("зима\n") == ("зима\\n", ["DejaVu Sans"])
    text, fonts = drawable("snow \U0002a6a5")             # four dragons, in hardly any font
    missing = fonts == ["DejaVu Sans"]                   # no font of this machine has it
    assert text == ("snow \\U0002a6a5" if missing else "snow \U0002a6a5")


def test_a_contact_sheet(tmp_path):
    triplets = [make_triplet(i) for i in range(2)]
    videos = {"source": [t.source for t in triplets],
              "white": [torch.ones_like(t.source) for t in triplets]}
    contact_sheet(triplets, videos, tmp_path / "sheet.png")
    picture = np.asarray(Image.open(tmp_path / "sheet.png"))[..., :3]
    frame = picture[44:44 + 96, 12:12 + 96]               # three dots for a pixel
    want = to_bytes(triplets[0].source[0]).permute(1, 2, 0)                       # (H, W, 3)
    want = want.repeat_interleave(3, 0).repeat_interleave(3, 1)
    assert abs(frame.astype(int) - want.numpy()).max() <= 1
    assert (picture[44:44 + 96, 2 * 12 + 3 * 98:] == 255).all()
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"]
