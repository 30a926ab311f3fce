"""RVE-Bench: a test split without leaks, which people verify (Sec. 3.2).

    python -m rvedata.split --from rave/ icvg/ --out bench/
    python -m rvedata.split --from rave/ icvg/ --out bench/ --decisions anna.json ben.json

The first command writes train.jsonl, test.jsonl (manifests), verify.html, in which people accept,
correct or reject each triplet of the test, and report.html. The second takes what verify.html
saved, a file a person, and tells how far they agree: then only what was accepted, and nobody
rejected, is in test.jsonl, as they corrected it, and verify.html has another triplet of the same
type for each that was rejected, as long as there are some. removed.jsonl says what was kept out,
and why. pairs.jsonl has rave's sources and instructions without targets that leak nothing.
"""

import base64
import json
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Callable

import numpy as np

from common.files import BadInput, Parser, atomic_write, check_writable, positive, run_script
from common.manifest import FIELDS
from common.video import hash_video
from rvedata import pages
from rvedata.decisions import KEPT, agreement_lines, changed, read_decisions, settle
from rvedata.embed import embed_clips, load_embedder
from rvedata.film import read_frames
from rvedata.flags import add_siglip_flag, add_work_flags, folder, ratio
from rvedata.holdout import find_leaks, make_split, quota_of_types
from rvedata.manifest import VIDEO_FIELDS, paths_of, rebase_paths, still_there
from rvedata.stages import read_accepted, run_stage, short_hash, write_stage


def read_manifests(folders: list[Path], name: str, out: Path, **fields: type) -> dict[str, dict]:
    """{id: record} of the manifests of this name, with paths relative to `out`."""
    found = {}
    for place in folders:
        records = [record for record in read_accepted(place / name, **fields)
                   if "instruction" in record]           # the pairs of icvg are another thing
        for record in still_there(place, records):
            found[record["id"]] = rebase_paths(record, place, out)
    return found


def index_videos(args: Namespace, paths: list[str], embed_images: Callable) -> dict[str, dict]:
    """{path: video as in holdout.py}; kept in videos.jsonl."""
    def work(item: dict) -> dict:
        path = args.out / item["id"]
        frames = read_frames(path)
        mirrored = [np.ascontiguousarray(frame[:, ::-1]) for frame in frames]
        vectors = embed_clips(embed_images, [frames, mirrored])                        # (2, D)
        return {"sha": " ".join(hash_video(path)), "vector": encode(vectors[0]),
                "mirrored": encode(vectors[1])}

    items = ({"id": path} for path in paths)
    run_stage(args.out / "videos.jsonl", items, work, args.skip_bad, args.workers, len(paths))
    lines = read_accepted(args.out / "videos.jsonl", sha=str, vector=str, mirrored=str)
    return {line["id"]: {"sha": line["sha"], "vector": decode(line["vector"]),
                         "mirrored": decode(line["mirrored"])} for line in lines}


def encode(vector: np.ndarray) -> str:
    """A vector (D,) as text, in half precision."""
    return base64.b64encode(vector.astype(np.float16).tobytes()).decode()


def decode(text: str) -> np.ndarray:
    """What encode was given, (D,), float32."""
    return np.frombuffer(base64.b64decode(text), np.float16).astype(np.float32)


def hold_out(args: Namespace, embed_images: Callable) -> None:
    """Write the split, what was kept out of it, verify.html and report.html in args.out."""
    out = args.out
    triplets = read_manifests(args.source, "triplets.jsonl", out, **dict.fromkeys(FIELDS, str))
    if not triplets:
        raise BadInput(f"--from {' '.join(map(str, args.source))}: no triplets.jsonl whose videos "
                       f"are there; run rave or icvg first")
    pairs = read_manifests(args.source, "pairs.jsonl", out)
    kept, people = out / KEPT, {}
    for file in [kept, *args.decisions] if kept.exists() else args.decisions:
        for name, found in read_decisions(file, triplets).items():
            people[name] = people.get(name, {}) | found
    decisions = settle(people)
    triplets = {name: changed(triplet, decisions.get(name), ("instruction",))
                for name, triplet in triplets.items()}
    shown = triplets | pairs
    paths = {path for record in shown.values() for path in paths_of(record)}
    videos = index_videos(args, sorted(paths), embed_images)

    def readable(records: dict[str, dict]) -> list[dict]:
        return [record for record in records.values() if videos.keys() >= set(paths_of(record))]
    triplets, pairs = readable(triplets), readable(pairs)
    if not triplets:
        raise BadInput(f"no triplet has videos that can be read; what failed, and why, is in "
                       f"{out}/videos.jsonl")
    quota = quota_of_types(triplets, args.n, args.share)
    rejected = {name for name, said in decisions.items() if said["decision"] == "reject"}
    found = make_split(triplets, quota, videos, args.same, rejected)
    leaks = find_leaks(found.candidates, found.train, videos, args.same, args.near)
    held_out = found.candidates + found.reserve
    leaking_pairs = find_leaks(held_out, pairs, videos, args.same, args.near)
    removed = found.duplicates | leaks | leaking_pairs
    write_stage(out / "removed.jsonl", [
        {"id": name, "rejected": reason, **dict(zip(VIDEO_FIELDS, paths_of(shown[name])))}
        for name, reason in sorted(removed.items())])
    write_stage(out / "pairs.jsonl", [pair for pair in pairs if pair["id"] not in leaking_pairs])
    write_stage(out / "reserve.jsonl", found.reserve)
    train = [triplet for triplet in found.train if triplet["id"] not in leaks]
    write_stage(out / "train.jsonl", train)
    write_stage(out / "candidates.jsonl", found.candidates)
    write_test(out, found.candidates, decisions)
    if people:
        said = [{"annotator": name, "decisions": found} for name, found in people.items()]
        atomic_write(kept, json.dumps(said, indent=1) + "\n")
    for line in agreement_lines(people):
        print(line)
    undecided = [triplet for triplet in found.candidates if triplet["id"] not in decisions]
    pages.verify(out, undecided, short_hash([triplet["id"] for triplet in undecided]))
    pages.report(out)


def write_test(out: Path, candidates: list[dict], decisions: dict[str, dict]) -> None:
    """Write test.jsonl: the accepted candidates, or all of them as long as there is no decision.

    A type that a person has changed is changed only here: it does not move the quotas.
    """
    said = {name: decision["decision"] for name, decision in decisions.items()}
    accepted = candidates
    if decisions:
        accepted = [changed(triplet, decisions[triplet["id"]], ("type",)) for triplet in candidates
                    if said.get(triplet["id"]) == "accept"]
    write_stage(out / "test.jsonl", accepted)
    types = Counter(triplet["type"] for triplet in accepted)
    print("test: " + ", ".join(f"{n} {name}" for name, n in sorted(types.items())))
    verify = f"open {out}/verify.html, then pass what it saves as --decisions"
    if not decisions:
        print(f"not verified yet: {verify}")
        return
    rejected = sum(said.get(triplet["id"]) == "reject" for triplet in candidates)
    undecided = len(candidates) - len(accepted) - rejected
    print(f"{len(accepted)} accepted, {rejected} rejected, {undecided} not decided, "
          f"of {len(candidates)}")
    if undecided:
        print(f"others take the rejected places: {verify}")


def parse(argv: list[str] | None = None) -> Namespace:
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--from", dest="source", type=folder, nargs="+", required=True,
        help="folders of rave and icvg")
    add("--out", type=Path, default=Path("out/bench"), help="folder of the results")
    add("--n", type=positive, default=1000, help="test triplets")
    add("--share", type=ratio, default=.2,
        help="share of a type's triplets that may go to the test, at most")
    add("--same", type=ratio, default=.98, help="videos of such a cosine are the same")
    add("--decisions", type=Path, nargs="+", default=[], metavar="FILE",
        help="what verify.html saved, a file a person")
    add_work_flags(parser)
    add_siglip_flag(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    check_writable(args.out / "test.jsonl")
    embed_images, _ = load_embedder(args.siglip)
    hold_out(args, embed_images)


if __name__ == "__main__":
    run_script(main)
