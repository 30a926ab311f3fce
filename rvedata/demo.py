"""All of it on films of the tiny world: no network, two minutes.

    python -m rvedata.demo --out demo/

Makes films and Ditto-like edits, runs rave, icvg and split on them, and trains a few steps on what
comes out. VLM and SigLIP are stand-ins (tiny_films.TinyWorldVLM, embed.embed_pixels): the demo
shows what the stages do, not how well a VLM does it.
"""

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

from common.files import BadInput, Parser, check_writable, positive, run_script
from rvedata import icvg, rave, split
from rvedata.tiny_films import TinyWorldVLM, make_ditto, make_movies

TRAIN = Path(__file__).parents[1] / "train.py"
TRIPLETS_A_MOVIE = 8


def parse(argv: list[str] | None = None) -> Namespace:
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("out/demo"), help="folder of the results")
    add("--movies", type=positive, default=8, help="how many films")
    add("--steps", type=positive, default=4, help="of training at the end")
    add("--weights", help="model folder to train from; weights/tiny if not given")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Make the films, run all commands on them, train a few steps as a user would."""
    args = parse(argv)
    check_writable(args.out / "a file")
    vlm, films, out = TinyWorldVLM(), args.out / "films", str(args.out)
    print(f"films and edits of the tiny world into {films}")
    make_movies(films / "movies", args.movies, TRIPLETS_A_MOVIE, vlm)
    metadata = make_ditto(films / "ditto", TRIPLETS_A_MOVIE * args.movies, vlm)
    rave.main(["--ditto", str(metadata), "--videos", f"{films}/ditto", "--out", f"{out}/rave"], vlm)
    icvg.main(["--movies", f"{films}/movies", "--out", f"{out}/icvg", "--least", "9",
               "--siglip", "pixels"], vlm)
    split.main(["--from", f"{out}/rave", f"{out}/icvg", "--out", f"{out}/bench", "--n", "16",
                "--siglip", "pixels"])
    command = [sys.executable, str(TRAIN), "--data", f"{out}/bench/train.jsonl",
               "--steps", str(args.steps), "--batch", "4", "--eval-items", "0",
               "--out", f"{out}/train", "--cache", f"{out}/cache"]
    if args.weights:
        command += ["--weights", args.weights]
    code = subprocess.run(command).returncode
    if code:
        raise BadInput(f"the data are made, but train.py ended with code {code} on {out}/bench")
    print(f"look at {out}/icvg/report.html, {out}/rave/report.html and {out}/bench/verify.html")


if __name__ == "__main__":
    run_script(main)
