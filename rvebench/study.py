"""Which method do people prefer? A page to rank on, blindly, and what they said (Sec. 5.3, Fig. 7).

    python -m rvebench.study out/scores --n 20            # out/scores/study/: a folder to hand out
    python -m rvebench.study out/scores --ratings *.json  # what came back; the report then shows it

A person sees a source, an instruction and the edits of all methods, under letters whose order is
another on each sample. All start at the same moment, each at its own pace: a slow one slows no
other. study_key.json, beside the folder, says which letter is which method; it is not handed out.
Who sends a file twice counts once. The source and the reference are not ranked.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from common.files import (BadInput, Parser, at_least_0, atomic_write, hash_of_file, markdown,
                          positive, run_script)
from common.intervals import format_interval
from rvebench.page import HERE, copy_or_encode, write_page
from rvebench.scores import NO_INTERVAL, read_results, role, samples, win_rates

CRITERIA = {
    "Edit Accuracy": "How well does it do what the instruction means?",
    "Content Preservation": "How well is everything else as it was?",
    "Visual Quality": "How good does the video look?"}
HELP = (
    "Each sample shows a source, an instruction that hints at an edit, and edits of it: A, B, ... "
    "Rank them three times, by the three questions: click the letters from the best to the worst, "
    "or press their keys. Two letters may share a place: press = before the second. Click a ranked "
    "letter to take it back, and a question to go to it.",
    "Enter or right and left go to the next and previous sample, space starts all videos anew.",
    "What you chose is kept in this browser as you go. At the end, or in between, save it; the "
    "saved file can be loaded again, here or on another machine, to go on.")


# ------------------------------------------------------------------------------------- the page

def write_study(out: Path, rows: list[dict], names: list[str], n: int, seed: int = 0) -> Path:
    """Write out/study/: study.html, and copies of the videos under names that tell nothing.

    n samples of which each method has a video; in each the methods get letters in another order, by
    `seed`. Returns the page's path. Raises BadInput where there are too few samples, or the key of
    another study would be lost.
    """
    def has_videos(sample):
        shown = all("TF" in sample["methods"].get(name, {}).get("scores", {}) for name in names)
        return shown and (out / sample["source"]).exists()

    usable = [sample for sample in samples(rows) if has_videos(sample)]
    if len(names) < 2 or len(usable) < n:
        raise BadInput(f"--n {n}: {len(usable)} samples have videos of all {len(names)} methods; "
                       f"take fewer samples, and two methods or more")
    rng = np.random.default_rng(seed)
    shown, copies, key = [], {}, {"study": "", "samples": []}
    for place, index in enumerate(rng.permutation(len(usable))[:n], 1):
        sample = usable[index]
        letters = {chr(65 + k): names[i] for k, i in enumerate(rng.permutation(len(names)))}
        files = {letter: f"{place}{letter}.mp4" for letter in letters}
        source = f"{place}source.mp4"
        copies[source] = sample["source"]
        for letter, name in letters.items():
            copies[files[letter]] = sample["methods"][name]["video"]
        shown.append({"instruction": sample["instruction"], "videos": {"source": source, **files}})
        key["samples"].append({"id": sample["id"], **letters})
    key["study"] = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    path, folder = out / "study_key.json", out / "study"
    if path.exists() and json.loads(path.read_text("utf-8")) != key:    # answers would be lost
        raise BadInput(f"{path}: is the key of another study; move it and {folder} away, or pass "
                       f"the same --n and --seed")
    atomic_write(path, json.dumps(key, indent=1) + "\n")
    for name, video in copies.items():
        copy_or_encode(out / video, folder / name)
    criteria = [{"name": name, "question": question} for name, question in CRITERIA.items()]
    data = {"key": f"study {key['study']}", "study": key["study"], "help": HELP,
            "criteria": criteria, "items": shown}
    write_page(folder / "study.html", HERE / "form.html", "Which edit is best?", data=data,
               style=HERE / "study.css", fields=HERE / "study.html", script=HERE / "study.js")
    return folder / "study.html"


# ---------------------------------------------------------------------------- what people said

def read_ratings(folder: Path, files: list[Path]) -> list[dict]:
    """[{rater, sample, criterion, ranks: {method: rank}}, ...] of what people saved.

    The last word of a rater on a sample and criterion counts. Raises BadInput.
    """
    try:
        key = json.loads((folder / "study_key.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder}/study_key.json: cannot be read ({error}); make the study with "
                       f"--n first") from error
    found = {}
    for file in files:
        try:
            rated = json.loads(Path(file).read_bytes())
            if rated["study"] != key["study"]:
                raise ValueError(f"it is of another study; give those of {folder}/study")
            rater = str(rated.get("rater") or hash_of_file(file))
            for row in rated["rankings"]:
                sample = key["samples"][row["sample"]]
                methods = {letter: name for letter, name in sample.items() if letter != "id"}
                criterion, ranks = row["criterion"], row["ranks"]
                possible = range(1, len(methods) + 1)
                is_whole = set(ranks) == set(methods) and set(ranks.values()) <= set(possible)
                if criterion not in CRITERIA or not is_whole:
                    raise ValueError(f"{criterion}: the ranks are {ranks}")
                found[rater, sample["id"], criterion] = {
                    "rater": rater, "sample": sample["id"], "criterion": criterion,
                    "ranks": {methods[letter]: rank for letter, rank in ranks.items()}}
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise BadInput(f"{file}: is no ratings.json of the study ({error}); take it away") \
                from error
    return list(found.values())


def keep_ratings(folder: Path, files: list[Path]) -> None:
    """Copy people's files to folder/ratings/, named by their content. Raises BadInput."""
    read_ratings(folder, files)                          # all are good, or none is kept
    for file in files:
        kept = folder / "ratings" / f"{hash_of_file(file)}.json"
        if not kept.exists():
            atomic_write(kept, file.read_bytes())


def results(folder: Path) -> dict | None:
    """What the kept ratings come to: a table, win rates by criterion, words; None if none.

    The intervals of the win rates draw raters and samples anew.
    """
    files = list((folder / "ratings").glob("*.json"))
    files.sort(key=lambda file: (file.stat().st_mtime, file.name))        # the last word counts
    if not files:
        return None
    ratings = read_ratings(folder, files)
    most, rates, shown = 0, {}, []
    for criterion in CRITERIA:
        own = [row for row in ratings if row["criterion"] == criterion]
        most = max(most, len(own))
        clusters = [(row["rater"], row["sample"]) for row in own]
        rates[criterion] = win_rates([row["ranks"] for row in own], clusters)
        for (a, b), rate in rates[criterion].items():
            if a < b:                                    # b over a is the rest of it
                shown.append({"criterion": criterion, "a": a, "b": b, "rate": rate})
    table = [["wins over", "N", *CRITERIA]]              # a ranking is of all methods
    for a, b in dict.fromkeys(pair for found in rates.values() for pair in found):
        cells = [format_interval(found.get((a, b), NO_INTERVAL), ".0%") for found in rates.values()]
        table.append([f"{a} over {b}", str(most), *cells])
    raters = len({row["rater"] for row in ratings})
    ranked = len({row["sample"] for row in ratings})
    words = f"People who ranked: {raters}. Samples: {ranked}. Rankings: {len(ratings)}."
    return {"rates": shown, "words": words, "table": table}


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("results", type=Path, help="a folder that rvebench.score has written")
    add("--n", type=positive, default=50, help="samples to rank")
    add("--seed", type=at_least_0, default=0,
        help="of the choice of samples and the order of letters")
    add("--ratings", nargs="+", type=Path, metavar="FILE", help="count what people saved, instead")
    args = parser.parse_args(argv)
    folder = args.results
    if args.ratings:
        keep_ratings(folder, args.ratings)
        found = results(folder)
        print(f"{markdown(found['table'])}{found['words']}\nkept in "
              f"{folder}/ratings; python -m rvebench.report {folder} shows them on the page")
        return
    rows, about = read_results(folder)
    names = [name for name in about["methods"] if not role(rows, name)]
    page = write_study(folder, rows, names, args.n, args.seed)
    print(f"wrote {page}: hand out its folder; {folder}/study_key.json says which method is which")


if __name__ == "__main__":
    run_script(main)
