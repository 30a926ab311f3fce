"""A prompt as Wan's T5 reads it."""

import html
import re

import ftfy


def clean_text(text: str) -> str:
    """Unicode mended, HTML entities read, single spaces.

    Raises ValueError where the text holds half of a character (a surrogate).
    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{ascii(text[:80])} is no Unicode text: write it in UTF-8")
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()
