"""Pairs of a cluster, by hand."""

import json

import numpy as np
from safetensors.numpy import save

from curation import read
from rvedata.pairs import select_pairs


def test_pairs_by_hand(tmp_path):
    (tmp_path / "embeddings").mkdir()
    turn = lambda degrees: np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], 1).astype(np.float32)
    tensors = {"image": turn(np.array([0, 60, 60, 0])), "text": turn(np.array([0, 0, 90, 45]))}
    (tmp_path / "embeddings/f.safetensors").write_bytes(save(tensors))
    members = [{"id": f"m#{k}", "movie": "m", "index": k, "file": "f", "row": k} for k in range(4)]
    (tmp_path / "clusters.jsonl").write_text(json.dumps({"id": "c", "movie": "m", "members": members}) + "\n")

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
    assert "no pair of its 4 clips has a cosine of the pictures in 0.600 to 0.900" == line["rejected"]


def test_no_clip_is_in_two_pairs_of_overlapping_clusters(tmp_path):
    (tmp_path / "embeddings").mkdir()
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(6, 4)).astype(np.float32)
    (tmp_path / "embeddings/f.safetensors").write_bytes(save({"image": vectors, "text": vectors}))
    members = [{"id": f"m#{k}", "movie": "m", "index": k, "file": "f", "row": k} for k in range(6)]
    clusters = [members[:4], members[2:]]
    (tmp_path / "clusters.jsonl").write_text("".join(
        json.dumps({"id": str(k), "movie": "m", "members": some}) + "\n"
        for k, some in enumerate(clusters)))
    select_pairs(tmp_path, 1, 1, 3, -99, 99)
    pairs = read(tmp_path / "pairs.jsonl")
    used = [r[side]["index"] for r in pairs for side in ("source", "target")]
    assert len(pairs) == 3 and sorted(used) == list(range(6))
