"""Which words of a text say what it is about?"""

import re

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
