"""What does curation cost? Shots found, clips embedded, shots clustered.

    python -m rvedata.speed                              # 1,000,000 synthetic shots
    python -m rvedata.speed --shots 10000

The embedder is a SigLIP of base size with random weights, which costs as much as a trained one.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from common.files import Parser, atomic_write, check_writable, positive, run_script
from common.video import write_video
from rvedata.embed import embed_clips, load_embedder, unit
from rvedata.film import find_shots, read_clips
from rvedata.icvg import CHUNK
from rvedata.tiny_films import film_shot, join_shots
from tiny import world
from tiny.tokenizer import make_tokenizer

ROOT = Path(__file__).parents[1]
SHOTS, FRAMES_A_SHOT = 32, 54
CLUSTER = """
import sys
from pathlib import Path
from rvedata.clusters import find_clusters
find_clusters(Path(sys.argv[1]), 16)
print(Path('/proc/self/status').read_text("utf-8"))
"""
GOAL = {"cluster_s": 120, "cluster_mib": 2048}


def synthetic_shots(folder: Path, n: int, per_movie: int = 2000, width: int = 64) -> None:
    """Embeddings as of `n` shots: five places in turn in each window of 16, and some noise."""
    rng = np.random.default_rng(0)
    per_movie = per_movie // CHUNK * CHUNK
    (folder / "embeddings").mkdir(parents=True)
    with open(folder / "embeddings.jsonl", "w", encoding="utf-8") as file:
        for first in range(0, n, CHUNK):
            number, at = divmod(first, per_movie)
            movie = f"movie{number:04d}"
            index = np.arange(at, at + min(CHUNK, n - first))
            places = rng.normal(size=(5 * (CHUNK // 16), width))
            place = places[index % CHUNK // 16 * 5 + index % 5]
            image = unit(place + .5 * rng.normal(size=place.shape)).astype(np.float32)  # (64, D)
            name = f"{movie}-{at:06d}"
            vectors = save({"image": image, "text": image})
            (folder / "embeddings" / f"{name}.safetensors").write_bytes(vectors)
            members = [{"id": f"{movie}#{k:05d}", "movie": movie, "index": k,
                        "clip": [50 * k, 50 * k + 40], "fps": 25., "caption": "what is seen"}
                       for k in index.tolist()]
            line = {"id": name, "movie": movie, "chunk": at // CHUNK, "members": members}
            file.write(json.dumps(line) + "\n")


def measure_film(folder: Path, clips: int = 8) -> dict:
    """Shots found and clips embedded a second, on a film of 480 x 480 pixels."""
    from transformers import SiglipConfig, SiglipModel
    path = folder / "film.mp4"
    triplets = [world.make_triplet(index, "icvg", "train") for index in range(SHOTS)]
    film, _ = join_shots([film_shot(triplet.before, FRAMES_A_SHOT // 9) for triplet in triplets])
    write_video(path, film, fps=24, scale=15)
    begin = time.perf_counter()
    _, frames, _ = find_shots(path)
    finding = time.perf_counter() - begin
    SiglipModel(SiglipConfig()).save_pretrained(folder / "siglip")
    make_tokenizer(["a"], 300).save_pretrained(folder / "siglip")
    embed_images, _ = load_embedder(str(folder / "siglip"))
    begin = time.perf_counter()
    spans = [(FRAMES_A_SHOT * k, FRAMES_A_SHOT * (k + 1)) for k in range(clips)]
    for frames_of_clip in read_clips(path, spans):
        embed_clips(embed_images, [frames_of_clip])
    embedding = time.perf_counter() - begin
    return {"film": f"480 x 480, {FRAMES_A_SHOT} frames a shot", "shots_per_s": SHOTS / finding,
            "frames_per_s": frames / finding, "clips_embedded_per_s": clips / embedding}


def measure_clustering(folder: Path, n: int) -> dict:
    """Seconds and MiB to cluster `n` shots, in a process of its own: the peak would be ours."""
    synthetic_shots(folder / "shots", n)
    begin = time.perf_counter()
    status = subprocess.run([sys.executable, "-c", CLUSTER, folder / "shots"], cwd=ROOT, check=True,
                            stdout=subprocess.PIPE, text=True).stdout
    seconds = time.perf_counter() - begin
    peak = int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 2 ** 10
    found = json.loads((folder / "shots" / "clusters.json").read_text("utf-8"))
    return {"clustered": n, "cluster_s": seconds, "cluster_mib": peak,
            **{key: found[key] for key in ("threshold", "clusters", "alone")}}


def measure(n: int) -> dict:
    """All of it, and whether 1,000,000 shots meet the goal."""
    with tempfile.TemporaryDirectory() as folder:
        result = measure_film(Path(folder)) | measure_clustering(Path(folder), n)
    met = n >= 1_000_000 and all(result[key] <= most for key, most in GOAL.items())
    return {**result, "goal": {**GOAL, "met": met}}


def parse(argv: list[str] | None = None) -> Namespace:
    parser = Parser(prog="python -m rvedata.speed", description=__doc__.split("\n\n")[0])
    parser.add_argument("--shots", type=positive, default=1_000_000,
                        help="synthetic shots to cluster")
    parser.add_argument("--out", type=Path, default=Path("out/speed"), help="folder of the result")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    check_writable(args.out / "curate.json")
    result = measure(args.shots)
    atomic_write(args.out / "curate.json", json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    run_script(main)
