"""Join the shards of rave or icvg that several machines made.

    python -m rvedata.merge --from part0/ part1/ --out icvg/

Files of the same name are written one after the other, each id once; failed items are left out, so
that the next run tries them again. Replies of the endpoint stay with their shard.
"""

import shutil
from pathlib import Path
from typing import Iterator

from common.files import BadInput, Parser, check_writable, run_script
from rvedata.stages import folder, read_records, rebase_paths, write_stage

REPLIES = {"replies.jsonl", "replies-captions.jsonl"}


def join_records(sources: list[Path], name: str, out: Path) -> Iterator[dict]:
    """The records of a stage, each id once; paths are relative to `out`."""
    seen = set()
    for source in sources:
        for record in read_records(source / name):
            if "failed" in record or record["id"] in seen:
                continue
            seen.add(record["id"])
            yield rebase_paths(record, source, out, keep="clips/")


def main(argv: list[str] | None = None) -> None:
    """Write the stages' files of all folders, joined, and copy their embeddings and clips."""
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--from", dest="source", type=folder, nargs="+", required=True,
                        help="folders of the shards")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    args = parser.parse_args(argv)
    if args.out.resolve() in [source.resolve() for source in args.source]:
        raise BadInput(f"--out {args.out}: is one of --from; name another folder")
    check_writable(args.out / "shots.jsonl")
    names = set()
    for source in args.source:
        found = {path.name for path in source.glob("*.jsonl")}
        if not found:
            raise BadInput(f"--from {source}: holds no *.jsonl of rave or icvg; correct the path")
        names |= found
    for name in sorted(names - REPLIES):
        write_stage(args.out / name, join_records(args.source, name, args.out))
    for source in args.source:
        for part in ("embeddings", "clips"):
            if (source / part).is_dir():
                shutil.copytree(source / part, args.out / part, dirs_exist_ok=True)


if __name__ == "__main__":
    run_script(main)
