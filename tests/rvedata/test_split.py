"""The test split from end to end, without leaks, with people's decisions."""

import json
import os
from collections import Counter

from curation import go, no_leak, read, write
from data import manifest_items
from presets import PRESETS


def ids(rows):
    return [r["id"] for r in rows]


def test_the_split_holds_out_without_leaks(rave, icvg, tmp_path, capsys):
    out = tmp_path / "bench"
    flags = ["--from", rave.out, icvg, "--n", 8, "--share", .3]
    go("split", out, *flags)
    test, train = no_leak(out)
    everything = read(rave.out / "triplets.jsonl") + read(icvg / "triplets.jsonl")
    counts = Counter(r["type"] for r in test)
    assert counts.keys() == {r["type"] for r in everything}
    assert max(counts.values()) - min(counts.values()) <= 1
    parts = ids(test + train + read(out / "removed.jsonl"))
    assert sorted(parts) == sorted(ids(everything))      # each is in one of them
    for name, rows in (("test", test), ("train", train)):
        assert len(manifest_items(out / f"{name}.jsonl", PRESETS["tiny"])[0]) == len(rows)

    anna = {r["id"]: {"decision": "accept"} for r in test[:-1]}
    anna[test[1]["id"]]["instruction"] = "a week of frost"             # corrected
    ben = {test[0]["id"]: {"decision": "reject", "reason": "dark"}}
    files = [tmp_path / "anna.json", tmp_path / "ben.json"]
    for file, said in zip(files, (anna, ben)):
        file.write_text(json.dumps({"decisions": said}))
    extra = tmp_path / "extra"                           # pairs without a target, of both sides
    extra.mkdir()
    pairs = [{"id": f"of {r['id']}", "type": r["type"], "instruction": f"as {r['id']} may have it",
              "source_video_path": os.path.relpath(out / r["source_video_path"], extra)}
             for r in [test[1], *train]]
    write(extra / "pairs.jsonl", pairs)
    go("split", out, *flags, "--from", rave.out, icvg, extra, "--decisions", *files)
    accepted = read(out / "test.jsonl")
    assert ids(accepted) == ids(test[1:-1])
    assert accepted[0]["instruction"] == "a week of frost"
    told = capsys.readouterr().out
    assert f"{len(accepted)} accepted, 1 rejected, " in told and "rejected, 0 not" not in told
    page = (out / "verify.html").read_text()             # of who takes the rejected place
    assert test[-1]["id"] in page and not any(name in page for name in anna)
    kept = ids(read(out / "pairs.jsonl"))
    assert kept and set(kept) <= {f"of {name}" for name in ids(train)}
    leak, = [r for r in read(out / "removed.jsonl") if r["id"] == f"of {test[1]['id']}"]
    assert "is a file of" in leak["rejected"] and "target_video_path" not in leak
