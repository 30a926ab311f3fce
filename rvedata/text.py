"""When do two texts say the same? When they share most of their content words."""

import re

STOP_WORDS = frozenset("""a an and are as at be been but by for from had has have he her him his i
if in into is it its just no not now of off on one or out over she so some than that the their
them then there these they this those to too up was we were what when where which while who will
with you your""".split())


def content_words(text: str) -> frozenset[str]:
    """The content words of an English text, in lower case and without their commonest endings."""
    words = re.findall(r"[a-z0-9]+", text.lower().replace("'s ", " "))
    return frozenset(_stem(word) for word in words if word not in STOP_WORDS)


def _stem(word: str) -> str:
    return re.sub(r"(?<=[a-z]{3})(ing|ed|es|s|e)$", "", word)


def near_duplicates(a: frozenset[str], b: frozenset[str], share: float) -> bool:
    """Whether two sets of content words have at least `share` of their union in common."""
    return len(a & b) >= share * len(a | b)


class SeenTexts:
    """Texts by name, to find the first one that says nearly the same as a new one."""

    def __init__(self, share: float):
        self.share = share
        self.words = {}                                  # name -> content words

    def first_like(self, name: str, text: str) -> str | None:
        """The name of a text that says nearly the same; if there is none, remember this one."""
        words = content_words(text)
        for other, seen in self.words.items():
            if near_duplicates(words, seen, self.share):
                return other
        self.words[name] = words
        return None
