"""Does self-reflection work? The paper's Tables 2 to 6 and Figure 4, and what it does not show.

    python -m experiments --all                    # every run, table and figure
    python -m experiments --table 4                # 2: cross, 3: literal, 4: objectives, 5: lambda,
                                                   # 6: tau
    python -m experiments --figure gamed           # --help has the names of all
    python -m experiments --figure headline --targets drift-60 --seeds 8 --n 400
    python -m experiments --all --list             # only what is left to do
    python -m experiments --table 4 --out results  # how the files in results/ were made

Trains and scores with the scripts that a user would use, one command on each core. What is done is
skipped: Ctrl-C loses nothing. Runs and their scores per sample stay in out/ablate, in a folder for
each base; tables (Markdown) and figures (PNG) go to --out.

An interval is 95 % of a bootstrap that draws anew both training seeds and test samples; methods are
compared on the same seeds and samples. The judge is the tiny world's oracle.
"""

import platform
import shlex
from pathlib import Path
from typing import Callable

import torch

from common.files import BadInput, Parser, atomic_write, check_writable, positive, run_script
from common.weights import hash_of_weights
from experiments import figures, jobs, tables, train
from experiments.runs import BASE, NEEDED_SCORES, TARGETS, Study, parents_of
from model import load_model
from tiny import world


def parse(argv=None):
    parser = Parser(description="Reproduce the paper's tables in the tiny world, and more.")
    add = parser.add_argument
    add("--all", action="store_true", help="every table and figure")
    for kind, text in (("table", "a table of the paper"), ("figure", "a figure")):
        names = [item.split()[1] for item in NEEDED_SCORES if item.startswith(kind)]
        add(f"--{kind}", action="append", default=[], choices=names, help=text)
    add("--list", action="store_true", help="only say what is left to run")
    add("--weights", help="another base than weights/tiny")
    add("--seeds", type=positive, default=3, help="how many training seeds")
    add("--n", type=positive, default=200, help="samples of a split to score")
    add("--steps", type=positive, default=500, help="of each training")
    add("--targets", choices=TARGETS, default="wrong-30",
        help="what is wrong with the training targets: a share of near misses, or of right edits "
             "in which the rest is re-rendered")
    add("--more", default="", metavar="FLAGS",
        help="flags for every training, such as '--batch 2', to try things out")
    add("--runs", type=Path, default=Path("out/ablate"), help="folder of the runs")
    add("--out", type=Path, default=Path("out/ablate"), help="folder of the tables and figures")
    args = parser.parse_args(argv)
    if not (args.all or args.table or args.figure):
        raise BadInput("nothing to do: pass --all, --table or --figure")
    return args


def open_study(args) -> Study:
    """The study with these flags. Raises BadInput where it could not be carried through."""
    try:
        flags = shlex.split(args.more)
    except ValueError as error:                  # a quotation mark that is not closed
        raise BadInput(f"--more {args.more}: {error}") from error
    load_model(args.weights)
    check_writable(args.out / "table.md")
    check_writable(args.runs / "log.txt")
    return Study(folder=args.runs / stamp(args), out=args.out, weights=args.weights,
                 seeds=range(args.seeds), n=args.n, steps=args.steps, targets=args.targets,
                 flags=flags)


def stamp(args) -> str:
    """The name of the runs' folder: another base, world or --more, another."""
    weights = args.weights or jobs.ROOT / "weights" / "tiny"
    return hash_of_weights(weights, f"{world.VERSION} {args.more}")[:8]


def check_flags(study: Study, items: list[str]) -> None:
    """Parse the flags of all trainings now, so that none is refused an hour later. Raises BadInput,
    also where --more would change what tells the runs apart."""
    more = f"--more {shlex.join(study.flags)}"
    names = {word.partition("=")[0] for word in study.flags if word.startswith("--")}
    for run in dict.fromkeys(score.run for item in items for score in NEEDED_SCORES[item]):
        if run == BASE or parents_of(run):       # its flags are the base's, or its parents'
            continue
        own = jobs.train_job(study, run, seed=0).command
        for name in names.intersection(own[:len(own) - len(study.flags)]):
            value = own[own.index(name) + 1]
            raise BadInput(f"{more}: each training has {name} {value} from the study itself; "
                           f"drop {name} from --more")
        try:
            train.parse(own[own.index("experiments.train") + 1:])
        except BadInput as error:
            raise BadInput(f"{more}: {error}") from error


def maker(item: str) -> Callable[[Study], str]:
    """What makes a table or figure: "figure map-longer" is figures.figure_map_longer."""
    module = tables if item.startswith("table") else figures
    return getattr(module, item.replace(" ", "_").replace("-", "_"))


def note(study: Study, item: str) -> str:
    """What made a table or figure: the line above it."""
    trained = [score.run for score in NEEDED_SCORES[item] if score.run != BASE]
    size = ""
    if trained:
        seeds = ", ".join(map(str, study.seeds_of(trained[0])))
        flags = [shlex.join(study.flags)] if study.flags else []
        steps = f"{study.steps_of(trained[0])} steps"
        how = ", ".join([steps, f"targets {study.targets}", *flags])
        size = (f"training seeds {seeds}, {how}; "
                f"scores 0..10 of {study.n} samples; ")
    return (f"`python -m experiments --{item}`: {size}[95 % interval]; torch {torch.__version__}, "
            f"Python {platform.python_version()}, base {study.folder.name}.")


def main(argv=None) -> None:
    args = parse(argv)
    study = open_study(args)
    items = [f"table {name}" for name in args.table] + [f"figure {name}" for name in args.figure]
    if args.all:
        items = list(NEEDED_SCORES)
    check_flags(study, items)
    left = jobs.plan(study, items)
    print(f"{sum(map(len, left))} jobs are left to run")
    if args.list:
        for chain in left:
            for job in chain:
                print(job.name)
        return
    while left:                                  # what has parents comes after them
        jobs.do_all(study, left)
        left = jobs.plan(study, items)
    for item in items:
        text = maker(item)(study)
        file = study.out / f"{item.replace(' ', '-')}.md"
        atomic_write(file, f"{note(study, item)}\n\n{text}\n")
        print(f"\n## {item}\n\n{text}")


if __name__ == "__main__":
    run_script(main)
