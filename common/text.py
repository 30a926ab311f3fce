"""A prompt as Wan's T5 reads it."""

import html
import re

import ftfy


def clean_text(text: str) -> str:
    """Unicode mended, HTML entities read, single spaces."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()
