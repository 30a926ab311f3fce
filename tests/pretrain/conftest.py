"""What the tests of pretraining share."""

import pytest

from pretrain import lessons
from tiny import world


class OneProcess:
    """Stands in for the pool of processes that render."""

    def __init__(self, *settings):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def map(self, work, numbers, chunksize):
        return map(work, numbers)


@pytest.fixture
def small_world(monkeypatch):
    """Few texts for the tokenizer, and no pool of processes for the renderer."""
    rules = [rule for of_subset in world.RULES.values() for rule in of_subset]
    phrases = [phrase for rule in rules for phrase in rule.phrases]
    monkeypatch.setattr(world, "all_texts", lambda: phrases)
    monkeypatch.setattr(lessons, "ProcessPoolExecutor", OneProcess)
