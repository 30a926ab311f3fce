"""What the tests share: a small model with random weights, so that no test needs the released ones."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import world
from model import PRESETS, SPECIAL_TOKENS, UnifiedModel


@pytest.fixture(scope="session")
def tiny() -> UnifiedModel:
    """The tiny preset with random weights (seed 0) and a tokenizer of the world's phrases. Tests must not change it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = UnifiedModel(PRESETS["tiny"]).eval()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    phrases = [phrase for rules in world.RULES.values() for rule in rules for phrase in rule.phrases]
    tokenizer.train_from_iterator(phrases, trainers.BpeTrainer(
        vocab_size=PRESETS["tiny"].llama["vocab_size"], special_tokens=SPECIAL_TOKENS, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    assert tokenizer.get_vocab_size() <= PRESETS["tiny"].t5["vocab_size"]
    model.vlm.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")
    model.text_tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")
    return model


@pytest.fixture(scope="session")
def tiny_dir(tiny, tmp_path_factory) -> Path:
    """The folder of `tiny`, as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny.save_pretrained(folder)
    return folder
