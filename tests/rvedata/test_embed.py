"""SigLIP's embeddings, against its parts one by one."""

import numpy as np
import pytest
import torch
from transformers import SiglipConfig, SiglipModel

from common.files import BadInput
from tiny.tokenizer import make_tokenizer
from rvedata.embed import embed_clips, load_embedder


def test_siglip(tmp_path):
    torch.manual_seed(0)
    small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    vision = {**small, "image_size": 32, "patch_size": 8}
    text = {**small, "vocab_size": 300, "max_position_embeddings": 12, "projection_size": 16}
    model = SiglipModel(SiglipConfig(vision_config=vision, text_config=text)).eval()
    model.save_pretrained(tmp_path)
    tokenizer = make_tokenizer(["a red ball"], 300)
    tokenizer.save_pretrained(tmp_path)
    image, text = load_embedder(str(tmp_path))
    frames = [np.random.default_rng(k).integers(0, 256, (40, 60, 3), np.uint8) for k in range(3)]
    found = image(frames)
    for frame, row in zip(frames, found):                # one by one, through torch's own resizing
        x = torch.from_numpy(frame).permute(2, 0, 1)[None] / 127.5 - 1
        x = torch.nn.functional.interpolate(x, (32, 32), mode="bilinear", antialias=True)
        with torch.no_grad():
            y = model.vision_model(x).pooler_output[0]
        np.testing.assert_allclose(row, y / y.norm(), atol=.01)
    first, second = embed_clips(image, [frames, frames[::-1]])
    np.testing.assert_allclose(first, found.mean(0) / np.linalg.norm(found.mean(0)), atol=1e-6)
    np.testing.assert_allclose(second, first, atol=1e-6)
    ids = tokenizer("a red ball").input_ids
    ids = torch.tensor([ids + [tokenizer.pad_token_id] * (12 - len(ids))])
    with torch.no_grad():
        y = model.text_model(ids).pooler_output[0]
    np.testing.assert_allclose(text(["A red Ball", "a ball " * 50])[0], y / y.norm(), atol=1e-5)
    with pytest.raises(BadInput, match="--siglip .*none: cannot be used"):
        load_embedder(str(tmp_path / "none"))
