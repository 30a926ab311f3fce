"""The tiny world as a benchmark, to try a method or a judge where the right answer is known.

    python -m rvebench.export_world --n 40 --out out/world      # bench.jsonl, source/ and target/
    python -m rvebench.score --manifest out/world/bench.jsonl --references --judge oracle
"""

from pathlib import Path

from tqdm import tqdm

from common.files import Parser, check_writable, positive, run_script
from common.jsonl import write_rows
from common.video import write_video
from tiny import world

SUBSETS = ("rave", "icvg")


def main(argv: list[str] | None = None) -> None:
    """Write rave and icvg in turn: videos in source/ and target/, bench.jsonl."""
    parser = Parser(description="Write samples of the tiny world as a benchmark.")
    add = parser.add_argument
    add("--n", type=positive, default=40, help="how many samples, of rave and icvg in turn")
    add("--split", default="test", choices=world.SPLITS, help="of the tiny world")
    add("--out", type=Path, default=Path("out/world"), help="folder of the manifest and the videos")
    args = parser.parse_args(argv)
    check_writable(args.out / "bench.jsonl")
    rows = []
    for k in tqdm(range(args.n), desc="export", unit="sample"):
        subset, index = SUBSETS[k % 2], k // 2
        triplet = world.make_triplet(index, subset, args.split)
        name = f"{subset}-{args.split}-{index}"
        source, target = f"source/{name}.mp4", f"target/{name}.mp4"
        write_video(args.out / source, triplet.source)
        write_video(args.out / target, triplet.target)
        rows.append({"id": name, "subset": subset, "source_video_path": source,
                     "target_video_path": target, "instruction": triplet.instruction,
                     "type": triplet.type})
    write_rows(args.out / "bench.jsonl", rows)
    print(f"wrote {args.out}/bench.jsonl and the videos of {args.n} samples")


if __name__ == "__main__":
    run_script(main)
