"""RAVE: Ditto-1M with its literal instructions made implicit (Sec. 3.1.1).

    python -m rvedata.rave --ditto training_metadata/*.json --videos DIR --out rave/
    python -m rvedata.rave ... --shard 0/2 --out part0/      # one machine, and 1/2 on another
    python -m rvedata.merge --from part0/ part1/ --out rave/

Writes rewrites.jsonl (a line for each item of Ditto-1M), triplets.jsonl (the manifest), pairs.jsonl
(a source and an instruction whose target was rejected: a manifest without targets) and report.html.
The same command goes on after a stop.
"""

import json
import os
from argparse import Namespace
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Callable, Iterator

from common.files import BadInput, Parser, check_writable, run_script
from rvedata import pages
from rvedata.film import read_frames
from rvedata.flags import add_vlm_flags, add_work_flags, folder
from rvedata.instructions import print_check_counts, read_examples, write_instruction
from rvedata.manifest import VIDEO_FIELDS, still_there, write_triplets
from rvedata.stages import (Rejected, my_shard, read_accepted, read_records, run_stage, short_hash,
                            write_stage)
from rvedata.text import Texts
from rvedata.vlm import make_vlm


def read_ditto(files: list[Path], shard: tuple[int, int], share: float) -> Iterator[dict]:
    """The items of Ditto-1M's training_metadata, sorted by source; a shard has whole sources.

    {id, source, target, literal, twin}: `twin` is an item of the same source whose text says nearly
    the same. Raises BadInput if a file is no such list.
    """
    by_source = {}
    for file in files:
        for source, target, text in _read_metadata(file):
            name = f"rave-{short_hash(source, target, text)}"
            by_source.setdefault(source, {})[name] = (target, text)
    for source in sorted(by_source):
        if not my_shard(source, shard):
            continue
        texts = Texts(share)
        for name, (target, text) in sorted(by_source[source].items()):
            twin = texts.first_like(text)
            if twin is None:
                texts.add(name, text)
            yield {"id": name, "source": source, "target": target, "literal": text, "twin": twin}


def _read_metadata(file: Path) -> list[tuple[str, str, str]]:
    keys = ("source_path", "edited_path", "instruction")
    try:
        records = json.loads(file.read_text("utf-8"))
        return [tuple(record[key].strip() for key in keys) for record in records]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise BadInput(f"{file}: no list of source_path, instruction and edited_path ({reason}); "
                       f"give files of Ditto-1M's training_metadata") from error


def rewrite(args: Namespace, ask: Callable) -> None:
    """Write rewrites.jsonl, triplets.jsonl and report.html in args.out."""
    def work(item: dict) -> dict:
        source, target = args.videos / item["source"], args.videos / item["target"]
        for video in (source, target):
            if not video.is_file():
                raise BadInput(f"{video}: the metadata names it, and it is missing; "
                               f"correct --videos")
        if item["twin"]:
            raise Rejected(f"says near the same as {item['twin']} of the same source")
        parts = ["Source:", *read_frames(source), "Edited:", *read_frames(target),
                 f"Literal: {item['literal']}"]
        answer = write_instruction(ask, parts, item["literal"], "rave", args.examples, args.overlap)
        return {**item["shown"], **answer, "literal": item["literal"]}

    path = args.out / "rewrites.jsonl"
    items = list(read_ditto(args.ditto, args.shard, args.near))
    for item in items:
        paths = [os.path.relpath(args.videos / item[name], args.out)
                 for name in ("source", "target")]
        item["shown"] = {"subset": "rave", **dict(zip(VIDEO_FIELDS, paths))}
    run_stage(path, items, work, args.skip_bad, args.workers, len(items),
              getattr(ask, "cost", None))
    print_check_counts(path)
    write_triplets(args.out, read_accepted(path), args.near)
    write_pairs(args.out, path)
    pages.report(args.out)


def write_pairs(out: Path, rewrites: Path) -> None:
    """Write pairs.jsonl: the sources and good instructions whose target does not fit them."""
    fields = ("id", "subset", "source_video_path", "instruction", "type", "rationale")
    pairs = [{field: record[field] for field in fields} for record in read_records(rewrites)
             if "rejected" in record and "instruction" in record]
    write_stage(out / "pairs.jsonl", sorted(still_there(out, pairs), key=lambda pair: pair["id"]))


def parse(argv: list[str] | None = None) -> Namespace:
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--ditto", type=Path, nargs="+", required=True, help="files of training_metadata")
    add("--videos", type=folder, required=True, help="folder to which their paths are relative")
    add("--out", type=Path, default=Path("out/rave"), help="folder of the results")
    add_work_flags(parser)
    add_vlm_flags(parser)
    args = parser.parse_args(argv)
    args.examples = read_examples(args.examples)
    return args


def main(argv: list[str] | None = None, ask: Callable | None = None) -> None:
    args = parse(argv)
    check_writable(args.out / "report.html")
    with nullcontext(ask) if ask else closing(make_vlm(args)) as vlm:
        rewrite(args, vlm)


if __name__ == "__main__":
    run_script(main)
