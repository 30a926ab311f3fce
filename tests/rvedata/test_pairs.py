"""Pairs of a cluster, by hand."""

import json

import numpy as np
from safetensors.numpy import save

from curation import read
from rvedata.pairs import filter_pairs, select_pairs


def test_pairs_by_hand(tmp_path):
    (tmp_path / "embeddings").mkdir()
    turn = lambda degrees: np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], 1).astype(np.float32)
    tensors = {"image": turn(np.array([0, 60, 60, 0])), "text": turn(np.array([0, 0, 90, 45]))}
    (tmp_path / "embeddings/f.safetensors").write_bytes(save(tensors))
    members = [{"id": f"m#{k}", "movie": "m", "index": k, "file": "f", "row": k} for k in range(4)]
    (tmp_path / "clusters.jsonl").write_text(json.dumps({"id": "c", "members": members}) + "\n")

    def best(*flags):
        select_pairs(tmp_path, *flags)
        return [(r["source"]["index"], r["target"]["index"], round(r["score"], 3))
                for r in read(tmp_path / "pairs.jsonl")]
    # captions: 01 1, 02 0, 03 .707, 12 0, 13 .707, 23 .707; 1 - pictures: 01 .5, 02 .5, 03 0, 12 0, 13 .5, 23 .5
    assert best(1, 1, 3) == [(0, 1, 1.5), (2, 3, 1.207)]
    assert best(1, 1, 1) == [(0, 1, 1.5)]
    assert best(0, 1, 3) == [(0, 1, .5), (2, 3, .5)]
    assert best(.1, 2, 3) == [(0, 1, 1.1), (2, 3, 1.071)]
    filter_pairs(tmp_path, .6, .9)
    assert all("cosine of the pictures 0.500" in r["rejected"] for r in read(tmp_path / "filter.jsonl"))
    filter_pairs(tmp_path, .4, .9)
    assert read(tmp_path / "filter.jsonl") == read(tmp_path / "pairs.jsonl")
