"""A model of wan1.3b at tiny sizes with random weights, and the authors' directory of it."""

import shutil

import pytest
import torch

from model import UnifiedModel
from presets import PRESETS
from realsize import convert
from small import SMALL, write_release
from tiny.tokenizer import make_tokenizer


@pytest.fixture(scope="session")
def original():
    """Tests must not change it."""
    torch.manual_seed(0)
    model = UnifiedModel(SMALL)
    for p in model.parameters():                         # no two alike
        torch.nn.init.normal_(p)
    model.vlm.tokenizer = model.text_tokenizer = make_tokenizer(["a hard frost came"], 600)
    model.released_unconditional = {"vlm": torch.randn(7, 24), "text": torch.randn(3, 24)}
    return model.eval()


@pytest.fixture(scope="session")
def released(original, tmp_path_factory):
    """Tests must not change it."""
    folder = tmp_path_factory.mktemp("released") / "revise_ckpt"
    write_release(folder, original)
    return folder


@pytest.fixture
def copied(released, tmp_path):
    """The released directory, for a test to change."""
    return shutil.copytree(released, tmp_path / "revise_ckpt")


@pytest.fixture(scope="session")
def converted(released, tmp_path_factory):
    """What `python -m realsize.convert` writes."""
    to = tmp_path_factory.mktemp("converted") / "revise"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "wan1.3b", SMALL)
        convert.main(["--from", str(released), "--to", str(to)])
    return to


@pytest.fixture
def small(monkeypatch):
    """The preset wan1.3b at tiny sizes."""
    monkeypatch.setitem(PRESETS, "wan1.3b", SMALL)
