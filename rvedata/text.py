"""When do two texts say the same? When they share most of their content words."""

import re
from collections import Counter

STOP_WORDS = frozenset("""a an and are as at be been but by for from had has have he her him his i
if in into is it its just no not now of off on one or out over she so some than that the their
them then there these they this those to too up was we were what when where which while who will
with you your""".split())


def content_words(text: str) -> frozenset[str]:
    """The content words of an English text, in lower case and without their commonest endings.

    Of a text without any: all its words.
    """
    words = re.findall(r"[a-z0-9]+", text.lower().replace("'s ", " "))
    return frozenset(map(_stem, set(words) - STOP_WORDS)) or frozenset(words)


def _stem(word: str) -> str:
    return re.sub(r"(?<=[a-z]{3})(ing|ed|es|s|e)$", "", word)


class Texts:
    """Texts by name, to find one that says nearly the same as another: they share most words.

    share: how much of their union two sets of content words must have in common.
    """

    def __init__(self, share: float):
        self.share = share
        self.names, self.words = [], []
        self.places = {}                                 # content word -> places of texts with it

    def add(self, name: str, text: str) -> None:
        """Remember a text."""
        words = content_words(text)
        for word in words:
            self.places.setdefault(word, []).append(len(self.names))
        self.names.append(name)
        self.words.append(words)

    def first_like(self, text: str) -> str | None:
        """The name of the first text that says nearly the same, or None."""
        words = content_words(text)
        shared = Counter(place for word in words for place in self.places.get(word, []))
        alike = [place for place, n in shared.items()
                 if n >= self.share * len(words | self.words[place])]
        return self.names[min(alike)] if alike else None
