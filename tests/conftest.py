"""What the tests share: a small model with random weights, so that no test needs the released ones.

Each of pytest-xdist's workers has a core to itself, and so one thread: sums depend on the number of
threads in their last bits, and such small tensors are slower on two.
"""

import os
import sys
from pathlib import Path

import pytest
import torch

WORKER = os.environ.get("PYTEST_XDIST_WORKER")           # None where pytest only starts the workers
if WORKER:
    CORES = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {CORES[int(WORKER.removeprefix("gw")) % len(CORES)]})
torch.set_num_threads(1)

sys.path.insert(0, str(Path(__file__).parents[1]))

import train
from browser import browser, one_browser
from clips import painted
from critic import Critic
from model import UnifiedModel
from presets import PRESETS
from tiny import world
from tiny.tokenizer import make_tokenizer


@pytest.fixture(scope="session")
def tiny() -> UnifiedModel:
    """The tiny preset with random weights (seed 0) and a tokenizer of the world's phrases.

    Tests must not change it.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = UnifiedModel(PRESETS["tiny"]).eval()
    rules = [rule for rules in world.RULES.values() for rule in rules]
    phrases = [phrase for rule in rules for phrase in rule.phrases]
    tokenizer = make_tokenizer(phrases, model.preset.t5["vocab_size"])
    model.vlm.tokenizer = model.text_tokenizer = tokenizer
    return model


@pytest.fixture(scope="session")
def tiny_dir(tiny, tmp_path_factory) -> Path:
    """The folder of `tiny`, as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoded(tiny_dir, tmp_path_factory):
    """(flags, `tiny` ready for training, its six encoded triplets)."""
    flags = ["--weights", str(tiny_dir), "--cache", str(tmp_path_factory.mktemp("cache")),
             "--items", "6", "--batch", "4"]
    args = train.parse(flags)
    model = train.load(args)
    return flags, model, train.encode(model, args)


@pytest.fixture(scope="session")
def made(encoded):
    """made(*flags): (args, critic, batches of four), as train.main makes them."""
    common, model, latents = encoded

    def make(*flags):
        args = train.parse([*common, *flags])
        critic = train.make_critic(model, args)
        return args, critic, train.make_batches(model, critic, latents, args)
    return make


@pytest.fixture(scope="session", autouse=True)
def short_thoughts():
    """Critics think 8 tokens, not 48: random weights never come to an end."""
    thoughts = Critic.thoughts.__wrapped__               # below torch.no_grad
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thoughts, "__defaults__", (None, 8))
        yield


@pytest.fixture(scope="session")
def triplets() -> list[world.Triplet]:
    """Two of RAVE's val split."""
    return [world.make_triplet(i, "rave", "val") for i in range(2)]


@pytest.fixture(scope="session")
def sources(triplets) -> torch.Tensor:
    """Their sources (2, F, 3, H, W)."""
    return torch.stack([triplet.source for triplet in triplets])


@pytest.fixture(scope="session")
def edits(triplets) -> torch.Tensor:
    """Their targets (2, F, 3, H, W)."""
    return torch.stack([triplet.target for triplet in triplets])


@pytest.fixture
def latents() -> torch.Tensor:
    """Random ones, of two clips of the tiny preset (2, C, f, h, w)."""
    shape = PRESETS["tiny"].latent_shape
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(3))
