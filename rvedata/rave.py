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
from contextlib import closing
from pathlib import Path
from typing import Callable, Iterator

from common.files import BadInput, Parser, check_writable, run_script
from rvebench.ask import Client
from rvedata import pages
from rvedata.film import read_frames
from rvedata.instructions import add_vlm_flags, asking, read_examples, write_instruction
from rvedata.stages import (VIDEO_FIELDS, add_work_flags, folder, my_shard, read_accepted,
                            read_records, run_stage, short_hash, write_stage, write_triplets)


def read_ditto(files: list[Path], shard: tuple[int, int]) -> Iterator[dict]:
    """The items of Ditto-1M's training_metadata, {id, source, target, literal}. Raises BadInput if
    a file is no such list."""
    keys = ("source_path", "edited_path", "instruction")
    for file in files:
        try:
            records = json.loads(file.read_text("utf-8"))
            found = [tuple(record[key].strip() for key in keys) for record in records]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise BadInput(f"{file}: no list of {', '.join(keys)} ({reason}); "
                           f"give files of Ditto-1M's training_metadata") from error
        for source, target, text in found:
            if my_shard(source, shard):
                yield {"id": f"rave-{short_hash(source, target, text)}", "source": source,
                       "target": target, "literal": text}


def rewrite(args: Namespace, ask: Callable) -> None:
    """Write rewrites.jsonl, triplets.jsonl and report.html in args.out."""
    def work(item: dict) -> dict:
        source, target = args.videos / item["source"], args.videos / item["target"]
        parts = ["Source:", *read_frames(source), "Edited:", *read_frames(target),
                 f"Literal: {item['literal']}"]
        answer = write_instruction(ask, parts, item["literal"], "rave", args.examples)
        return {**item["shown"], **answer, "literal": item["literal"]}

    path = args.out / "rewrites.jsonl"
    items = list(read_ditto(args.ditto, args.shard))
    for item in items:
        paths = [os.path.relpath(args.videos / item[name], args.out)
                 for name in ("source", "target")]
        item["shown"] = {"subset": "rave", **dict(zip(VIDEO_FIELDS, paths))}
    run_stage(path, items, work, args.skip_bad, args.workers, len(items))
    write_triplets(args.out, read_accepted(path))
    fields = ("id", "subset", "source_video_path", "instruction", "type", "rationale")
    pairs = [{field: record[field] for field in fields} for record in read_records(path)
             if "rejected" in record and "instruction" in record]        # but the target was unfit
    write_stage(args.out / "pairs.jsonl", sorted(pairs, key=lambda pair: pair["id"]))
    pages.report(args.out)


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
    if ask:
        rewrite(args, ask)
        return
    with closing(Client(args.out / "replies.jsonl", args.model, args.base_url)) as client:
        rewrite(args, asking(client))


if __name__ == "__main__":
    run_script(main)
