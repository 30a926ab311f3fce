"""What the tests of pretraining share."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from pretrain import lessons
from tiny import world


@pytest.fixture(scope="module")
def small_world():
    """Few texts for the tokenizer, and no processes for the renderer."""
    phrases = [phrase for rules in world.RULES.values() for rule in rules
               for phrase in rule.phrases]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "all_texts", lambda: phrases)
        patch.setattr(lessons, "ProcessPoolExecutor", lambda *settings: ThreadPoolExecutor(1))
        yield
