"""What looks and reads alike? Embeddings by SigLIP 2 (Sec. 3.1.2), and the words of a text.

Axis letters: N frames, clips or texts, K frames of a clip, D width of an embedding, S side of a
square picture. A frame is (H, W, 3) uint8; the rows of embeddings have length 1.
"""

import argparse
import re
import zlib
from typing import Callable

import numpy as np
import torch
from PIL import Image

from common.video import to_video

STOP_WORDS = frozenset("""a an and are as at be been but by for from had has have he her him his i
if in into is it its just no not now of off on one or out over she so some than that the their
them then there these they this those to too up was we were what when where which while who will
with you your""".split())
ENDING = re.compile(r"(?<=[a-z]{3})(ing|ed|es|s|e)$")    # the commonest

DEFAULT = "google/siglip2-base-patch16-224"
BATCH = 32


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1. (N, D) -> (N, D)"""
    return x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12)


def add_siglip_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--siglip", default=DEFAULT,
                        help="id or folder of the embedder; pixels: a stand-in without weights")


def load_embedder(name: str) -> tuple[Callable, Callable]:
    """(embed_images, embed_texts): frames -> (N, D) and texts -> (N, D'), float32, unit rows.

    name: the id or the folder of a SigLIP of fixed size, or "pixels", which needs no weights.
    Raises BadInput if it cannot be loaded.
    """
    if name == "pixels":
        return embed_pixels, embed_word_counts
    from transformers import AutoTokenizer

    from rvebench.quality import load_extractor
    model = load_extractor("--siglip", name, DEFAULT, "config.vision_config.image_size",
                           "config.text_config.max_position_embeddings")
    tokenizer = AutoTokenizer.from_pretrained(name)
    side = model.config.vision_config.image_size
    length = model.config.text_config.max_position_embeddings

    @torch.no_grad()
    def embed_images(frames: list[np.ndarray]) -> np.ndarray:
        # each frame is squeezed into a square in [-1, 1], as SigLIP's own processor does
        squares = [Image.fromarray(frame).resize((side, side), Image.Resampling.BILINEAR)
                   for frame in frames]
        x = to_video([np.asarray(square) for square in squares])                      # (N, 3, S, S)
        rows = [model.get_image_features(pixel_values=batch.to(model.device)).pooler_output.cpu()
                for batch in x.split(BATCH)]
        return unit(torch.cat(rows).numpy())                                           # (N, D)

    @torch.no_grad()
    def embed_texts(texts: list[str]) -> np.ndarray:
        # lower case, padded to the full length: SigLIP pools the last position
        ids = tokenizer([text.lower() for text in texts], padding="max_length",
                        max_length=length, truncation=True, return_tensors="pt").input_ids
        features = model.get_text_features(input_ids=ids.to(model.device))
        return unit(features.pooler_output.cpu().numpy())                              # (N, D')
    return embed_images, embed_texts


def embed_clips(embed_images: Callable, clips: list[list[np.ndarray]]) -> np.ndarray:
    """Embeddings (N, D) of clips of equally many frames: the mean over their frames, unit rows."""
    frames = embed_images([frame for clip in clips for frame in clip])                 # (N K, D)
    per_clip = frames.reshape(len(clips), -1, frames.shape[1])                         # (N, K, D)
    return unit(per_clip.mean(1))


# -------------------------------------------------------------------------------------------- words

def content_words(text: str) -> frozenset[str]:
    """The content words of an English text, in lower case and without their commonest endings.

    Of a text without any: all its words.
    """
    words = re.findall(r"[a-z0-9]+", text.lower().replace("'s ", " "))
    return frozenset(ENDING.sub("", word) for word in set(words) - STOP_WORDS) or frozenset(words)


# --------------------------------------------------------------- stand-ins for the demo: no weights

def embed_pixels(frames: list[np.ndarray]) -> np.ndarray:
    """Stands in for the vision tower: the colours of a 4 x 4 grid, around grey. (N, 48)"""
    rows = []
    for frame in frames:
        grid = Image.fromarray(frame).resize((4, 4), Image.Resampling.BOX)
        rows.append(np.asarray(grid, np.float32).ravel() / 255 - .5)
    return unit(np.stack(rows))


def embed_word_counts(texts: list[str]) -> np.ndarray:
    """Stands in for the text tower: which content words there are, hashed to 64 places. (N, 64)"""
    rows = np.full((len(texts), 64), 1e-6, np.float32)
    for row, text in zip(rows, texts):
        row[[zlib.crc32(word.encode()) % 64 for word in content_words(text)]] = 1
    return unit(rows)
