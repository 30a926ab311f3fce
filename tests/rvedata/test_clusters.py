"""Embeddings, threshold, clusters and pairs, against what is made in another way."""

import json
from itertools import combinations

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from scipy.stats import norm
from transformers import SiglipConfig, SiglipModel

from common.files import BadInput
from curation import read, turn, write
from rvedata.clusters import (BIN_EDGES, clusters_of, find_clusters, minimum_error_threshold,
                              select_pairs)
from rvedata.embed import embed_clips, load_embedder, unit
from tiny.tokenizer import make_tokenizer


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


@pytest.mark.parametrize("share, low, high", [
    (.5, (.3, .1), (.8, .05)), (.05, (.3, .15), (.9, .03)), (.02, (0., .1), (.7, .05))])
def test_threshold_of_two_groups(share, low, high):
    rng, n = np.random.default_rng(0), 200_000
    x = np.concatenate([rng.normal(*low, int(n * (1 - share))), rng.normal(*high, int(n * share))])
    found = minimum_error_threshold(np.histogram(x, BIN_EDGES)[0])
    grid = np.linspace(low[0], high[0], 10_001)          # where the two densities cross
    gap = np.abs((1 - share) * norm.pdf(grid, *low) - share * norm.pdf(grid, *high))
    wrong_at = lambda t: (1 - share) * norm.sf(t, *low) + share * norm.cdf(t, *high)
    assert wrong_at(found) < 1.6 * wrong_at(grid[np.argmin(gap)]) + 1e-4


def test_threshold_of_a_gap_and_of_one_group():
    counts = np.zeros(400, int)
    counts[[100, 101, 102, 300, 301]] = 5, 9, 5, 4, 4
    middle = (BIN_EDGES[103] + BIN_EDGES[300]) / 2
    assert minimum_error_threshold(counts) == pytest.approx(middle)
    one = np.random.default_rng(0).normal(.4, .1, 10_000)
    with pytest.raises(ValueError, match="do not form two groups"):
        minimum_error_threshold(np.histogram(one, BIN_EDGES)[0])


def fake(out, places, dim=64):
    """Embeddings of the shots of a movie "m", each at a place, without a film: (N, dim)."""
    rng = np.random.default_rng(0)
    centres = unit(rng.normal(size=(max(places) + 1, dim)))
    image = unit(centres[places] + .05 * rng.normal(size=(len(places), dim))).astype(np.float32)
    (out / "embeddings").mkdir(parents=True)
    (out / "embeddings/all.safetensors").write_bytes(save({"image": image, "text": image}))
    members = [{"id": f"m#{k:05d}", "movie": "m", "index": k, "clip": [9 * k, 9 * k + 9]}
               for k in range(len(places))]
    write(out / "embeddings.jsonl", [                    # before a caption came, there were fewer
        {"id": name, "movie": "m", "members": members[:n]}
        for name, n in (("all", len(places)), ("some", 7))])
    return image


def test_a_movie_of_many_cuts(tmp_path):
    n = 1001
    places = [k // 16 * 3 + k % 3 for k in range(n)]     # three places in turn, for sixteen shots
    image = fake(tmp_path, places)
    threshold = find_clusters(tmp_path, 16)
    kept = json.loads((tmp_path / "clusters.json").read_text())
    assert threshold == kept["threshold"] and kept["alone"] == 0
    found = [[r["index"] for r in cluster["members"]]
             for cluster in read(tmp_path / "clusters.jsonl")]
    together = {pair for index in found for pair in combinations(index, 2)}
    pairs = [(i, j) for i, j in combinations(range(n), 2) if i // 16 == j // 16]
    assert together == {(i, j) for i, j in pairs if places[i] == places[j]}
    counts, _ = np.histogram([image[i] @ image[j] for i, j in pairs], BIN_EDGES)
    assert np.abs(kept["counts"] - counts).sum() <= 20   # rounding at the bins' edges


def test_links_by_hand():
    """Linked are those within 10 degrees, and whoever is linked to them."""
    clips = [{"index": k} for k in range(6)]
    image = turn(0, 10, 20, 90, 100, 180)
    assert clusters_of(clips, image, 16, np.cos(np.radians(10.1))) == [[0, 1, 2], [3, 4]]


# -------------------------------------------------------------------------------------------- pairs

def test_pairs_by_hand(tmp_path):
    (tmp_path / "embeddings").mkdir()
    vectors = {"image": turn(0, 60, 60, 0), "text": turn(0, 0, 90, 45)}
    (tmp_path / "embeddings/f.safetensors").write_bytes(save(vectors))
    members = [{"id": f"m#{k}", "movie": "m", "index": k, "file": "f", "row": k} for k in range(4)]
    write(tmp_path / "clusters.jsonl", [{"id": "0", "movie": "m", "members": members}])

    def best(similarity, diversity, per_cluster, low=-1, high=1):
        select_pairs(tmp_path, similarity, diversity, per_cluster, low, high)
        return [(r["source"]["index"], r["target"]["index"], round(r["score"], 3))
                for r in read(tmp_path / "pairs.jsonl") if "rejected" not in r]
    # captions: 01 1, 02 0, 03 .707, 12 0, 13 .707, 23 .707
    # 1 - pictures: 01 .5, 02 .5, 03 0, 12 0, 13 .5, 23 .5
    assert best(1, 1, 3) == [(0, 1, 1.5), (2, 3, 1.207)]
    assert best(1, 1, 1) == [(0, 1, 1.5)]
    assert best(0, 1, 3) == [(0, 1, .5), (2, 3, .5)]
    assert best(.1, 2, 3) == [(0, 1, 1.1), (2, 3, 1.071)]
    assert best(1, 1, 3, .4, .9) == [(0, 1, 1.5), (2, 3, 1.207)]
    assert best(1, 1, 1, .6, 1) == [(0, 3, .707)]        # the best pairs fail: the next one counts
    assert best(1, 1, 3, .6, .9) == []
    line, = read(tmp_path / "pairs.jsonl")
    assert line["rejected"] == ("no pair of its 4 clips has a cosine of the pictures in "
                                "0.600 to 0.900")
