"""The synthetic shots of the speed measurement are what they say."""

from curation import read
from rvedata.clusters import find_clusters
from rvedata.speed import synthetic_shots


def test_synthetic_shots_of_the_bench(tmp_path):
    synthetic_shots(tmp_path, 4000)
    find_clusters(tmp_path, 16)
    members = [[(r["movie"], r["index"]) for r in cluster["members"]] for cluster in read(tmp_path / "clusters.jsonl")]
    assert sum(map(len, members)) > .99 * 4000 and len({m for some in members for m, _ in some}) == 3
    assert all(len({(m, k // 16, k % 5) for m, k in some}) == 1 for some in members)
