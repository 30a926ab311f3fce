"""RVE-Bench: a test split without leaks, which people verify (Sec. 3.2).

    python -m rvedata.split --from rave/ icvg/ --out bench/
    python -m rvedata.split --from rave/ icvg/ --out bench/ --decisions anna.json ben.json

The first command writes train.jsonl, test.jsonl (manifests), verify.html, in which people accept,
correct or reject each triplet of the test, and report.html. The second takes what verify.html
saved, all files so far: then only what was accepted, and nobody rejected, is in test.jsonl, as they
corrected it, and verify.html has another triplet for each that was rejected, as long as there are
some. removed.jsonl says what was kept out, and why: whole movies and whole source videos go to one
side; then what is the same as, looks like or reads like something of the test leaves the training
set. pairs.jsonl has rave's sources and instructions without targets that leak nothing.

What verify.html saves: {"decisions": {an id: {"decision": "accept", "instruction": as it was
changed, if it was}, another: {"decision": "reject", "reason": why}}}

Axis letters: N triplets of the test, D width of an embedding.
"""

import base64
import json
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Callable

import numpy as np

from common.files import BadInput, Parser, between, check_writable, positive, run_script
from common.video import hash_video
from rvedata import pages
from rvedata.embed import add_siglip_flag, content_words, embed_clips, load_embedder
from rvedata.film import read_frames
from rvedata.stages import (VIDEO_FIELDS, add_work_flags, folder, paths_of, read_accepted,
                            rebase_paths, run_stage, short_hash, write_stage)

NEAR = .8                                                # texts that share so much are the same


# -------------------------------------------------------------------------------- what there is


def read_manifests(folders: list[Path], name: str, out: Path) -> dict[str, dict]:
    """{id: record} of the manifests of this name, with paths relative to `out`."""
    found = {}
    for place in folders:
        for record in read_accepted(place / name):
            if "instruction" in record:                  # the pairs of icvg are another thing
                found[record["id"]] = rebase_paths(record, place, out)
    return found


def index_videos(args: Namespace, paths: list[str], embed_images: Callable) -> dict[str, dict]:
    """{path: {"sha": hash of its file, "vector": (D,), of length 1}}; kept in videos.jsonl."""
    def work(item: dict) -> dict:
        path = args.out / item["id"]
        vector, = embed_clips(embed_images, [read_frames(path)])                       # (1, D)
        half = vector.astype(np.float16).tobytes()
        return {"sha": " ".join(hash_video(path)), "vector": base64.b64encode(half).decode()}

    items = ({"id": path} for path in paths)
    run_stage(args.out / "videos.jsonl", items, work, args.skip_bad, args.workers, len(paths))
    videos = {}
    for line in read_accepted(args.out / "videos.jsonl"):
        vector = np.frombuffer(base64.b64decode(line["vector"]), np.float16)
        videos[line["id"]] = {"sha": line["sha"], "vector": vector.astype(np.float32)}
    return videos


def read_decisions(files: list[Path], triplets: dict[str, dict]) -> dict[str, dict]:
    """{id: decision} of what people decided: whom anybody rejects is rejected; the last change
    counts. Raises BadInput where a file decides about none of these triplets."""
    settled = {}
    for file in files:
        try:
            decisions = json.loads(file.read_text("utf-8"))["decisions"]
            for name, decision in decisions.items():
                if decision["decision"] not in ("accept", "reject"):
                    raise ValueError(f"{name} is neither accepted nor rejected")
        except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
            raise BadInput(f"{file}: cannot be read ({error!r:.80}); "
                           f"give what verify.html saved") from error
        if decisions and decisions.keys().isdisjoint(triplets):
            raise BadInput(f"{file}: decides about no triplet of --from; give another file")
        for name, decision in decisions.items():
            before = settled.get(name, {})
            settled[name] = before | decision
            if before.get("decision") == "reject":
                settled[name]["decision"] = "reject"
    return settled


# ---------------------------------------------------------------------------- what goes where

def quota_of_types(triplets: list[dict], n: int, share: float) -> dict[str, int]:
    """{type: triplets for the test}: equally many of each, but at most `share` of a type."""
    count = Counter(triplet["type"] for triplet in triplets)
    each, remainder = divmod(n, len(count))
    quota = {}
    for k, name in enumerate(sorted(count)):
        wanted = each + (1 if k < remainder else 0)
        quota[name] = min(wanted, max(1, int(share * count[name])))
    return quota


def take_groups(triplets: list[dict], quota: dict[str, int]
                ) -> tuple[list[dict], list[dict], list[dict]]:
    """(test, surplus, train): whole groups of triplets until the quota of each type is filled.

    A group is what must not be on both sides: a movie (ICVG), or a source video (RAVE). `surplus`:
    what the groups of the test have beyond the quota; `train`: the other groups. Which groups are
    taken depends on their names, not on the order of the triplets. So if some of the test are left
    out of `triplets`, others take their places, and the rest of the test stays.
    """
    left, groups = Counter(quota), {}
    for triplet in sorted(triplets, key=lambda triplet: triplet["id"]):
        group = triplet.get("movie") or triplet["source_video_path"]
        groups.setdefault(group, []).append(triplet)
    test, surplus, train = [], [], []
    for name in sorted(groups, key=lambda name: short_hash("test", name)):
        chosen, others = [], []
        for triplet in groups[name]:
            if left[triplet["type"]] > 0:
                left[triplet["type"]] -= 1
                chosen.append(triplet)
            else:
                others.append(triplet)
        test += chosen
        if chosen:
            surplus += others
        else:
            train += others
    return test, surplus, train


def finder_of_alike(test: list[dict]) -> Callable[[str], str | None]:
    """text -> the id of the first triplet of the test whose instruction says nearly the same.

    Of their content words, of both together, they share at least NEAR. Only those of the test that
    share a word are looked at: there may be a million texts to ask for.
    """
    words_of = [content_words(triplet["instruction"]) for triplet in test]
    places = {}                                          # content word -> places of texts with it
    for place, words in enumerate(words_of):
        for word in words:
            places.setdefault(word, []).append(place)

    def find(text: str) -> str | None:
        words = content_words(text)
        shared = Counter(place for word in words for place in places.get(word, []))
        alike = [place for place, n in shared.items() if n >= NEAR * len(words | words_of[place])]
        return test[min(alike)]["id"] if alike else None
    return find


def find_leaks(test: list[dict], train: list[dict], videos: dict[str, dict],
               same: float) -> dict[str, str]:
    """Which triplets of `train` are too near to the test, and why: {id: reason}.

    A video is the same file, or its embedding has a cosine of at least `same`; or the instructions
    say nearly the same. Those of `train` may lack a target.
    videos: of `index_videos`.
    """
    find_alike, paths, id_of_file = finder_of_alike(test), [], {}
    for triplet in test:
        for path in paths_of(triplet):
            paths.append(path)
            id_of_file[videos[path]["sha"]] = triplet["id"]
    vectors = np.stack([videos[path]["vector"] for path in paths])                     # (2 N, D)

    def why(triplet: dict) -> str:
        for path in paths_of(triplet):
            if videos[path]["sha"] in id_of_file:
                return f"{path} is a file of {id_of_file[videos[path]['sha']]}"
            cosines = vectors @ videos[path]["vector"]                                 # (2 N,)
            if cosines.max() >= same:
                return f"{path} looks like {paths[cosines.argmax()]} ({cosines.max():.3f})"
        other = find_alike(triplet["instruction"])
        return "" if other is None else f"reads like {other}: {triplet['instruction']!r}"

    reasons = {triplet["id"]: why(triplet) for triplet in train}
    return {name: reason for name, reason in reasons.items() if reason}


# -------------------------------------------------------------------------------------- the command

def hold_out(args: Namespace, embed_images: Callable) -> None:
    """Write the split, what was kept out of it, verify.html and report.html in args.out."""
    out = args.out
    triplets = read_manifests(args.source, "triplets.jsonl", out)
    if not triplets:
        raise BadInput(f"--from {' '.join(map(str, args.source))}: no triplets.jsonl; "
                       f"run rave or icvg first")
    pairs = read_manifests(args.source, "pairs.jsonl", out)
    decisions = read_decisions(args.decisions, triplets)
    shown = triplets | pairs
    paths = {path for record in shown.values() for path in paths_of(record)}
    videos = index_videos(args, sorted(paths), embed_images)
    readable = {name: record for name, record in shown.items()
                if videos.keys() >= set(paths_of(record))}

    rejected = {name for name, said in decisions.items() if said["decision"] == "reject"}
    usable = []
    for name in triplets.keys() & readable.keys() - rejected:
        corrected = decisions.get(name, {}).get("instruction")
        usable.append(triplets[name] | ({"instruction": corrected} if corrected else {}))
    if not usable:
        raise BadInput(f"no triplet is left; what failed, and why, is in {out}/videos.jsonl")
    quota = quota_of_types(list(triplets.values()), args.n, args.share)
    candidates, surplus, train = take_groups(usable, quota)
    pairs = [pair for name, pair in pairs.items() if name in readable]
    leaks = find_leaks(candidates, train + pairs, videos, args.same)
    removed = leaks | {triplet["id"]: "beside the test: of the same movie or source"
                       for triplet in surplus}
    write_stage(out / "removed.jsonl", [
        {"id": name, "rejected": reason, **dict(zip(VIDEO_FIELDS, paths_of(shown[name])))}
        for name, reason in sorted(removed.items())])
    write_stage(out / "pairs.jsonl", [pair for pair in pairs if pair["id"] not in leaks])
    write_stage(out / "train.jsonl", [triplet for triplet in train if triplet["id"] not in leaks])

    undecided = [triplet for triplet in candidates if triplet["id"] not in decisions]
    test = candidates
    if decisions:
        test = [triplet for triplet in candidates if triplet["id"] in decisions]
        print(f"{len(test)} accepted, {len(rejected)} rejected, {len(undecided)} not decided")
    write_stage(out / "test.jsonl", test)
    types = Counter(triplet["type"] for triplet in test)
    print("test: " + ", ".join(f"{n} {name}" for name, n in sorted(types.items())))
    if undecided:
        print(f"to verify it, open {out}/verify.html, and pass what it saves as --decisions")
    pages.verify(out, undecided, short_hash([triplet["id"] for triplet in undecided]))
    pages.report(out)


def parse(argv: list[str] | None = None) -> Namespace:
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--from", dest="source", type=folder, nargs="+", required=True,
        help="folders of rave and icvg")
    add("--out", type=Path, default=Path("out/bench"), help="folder of the results")
    add("--n", type=positive, default=1000, help="test triplets")
    add("--share", type=between(0, 1), default=.2,
        help="share of a type's triplets that may go to the test, at most")
    add("--same", type=between(0, 1), default=.98, help="videos of such a cosine are the same")
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
