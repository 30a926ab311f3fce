"""Which trainings and which scores do the tables and figures need?

A *run* is a training, known by its name: RUNS has its flags. A *score* is a run's model on a subset
of a split of the tiny world. NEEDED_SCORES says which scores a table or figure shows.

All runs share base, data, steps, batch and learning rate. What is wrong with their data is the
study's choice of TARGETS; a run "... on <targets>" has other ones, "..., 5 x steps" five times as
many steps. A run that two studies need is done once: a map's runs of 5 times 450 steps are there
already when a table of 2,250 steps is made.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterable, NamedTuple

BASE = "base"                                    # the run that is none: the model before training
TARGETS = {                                      # what is wrong with the training targets
    "right": "",
    "wrong-30": "--wrong 0.3",                   # near misses, of seven kinds
    "wrong-60": "--wrong 0.6",
    "drift-60": "--drift 0.6"}                   # the edit is right, the rest re-rendered
TIMES_STEPS = re.compile(r", ([0-9.]+) x steps$")    # a run of so many times the study's steps
HALF = ", half"                                  # the mean of a run's weights and SFT's
CHOSEN = ", chosen edits"                        # SFT, also on those of a run that the VLM chose
HARDENED = "weights/hardened"                    # the VLM after pretrain.harden

# runs by what they differ in; "uso" has lambda 0.25 and tau 0.5
LAMBDAS = {0: "sft", .1: "lambda 0.1", .25: "uso", .5: "lambda 0.5", .75: "lambda 0.75"}   # Table 5
TAUS = {.1: "tau 0.1", .3: "tau 0.3", .5: "uso", .7: "tau 0.7", .9: "tau 0.9"}             # Table 6
CRITICS = {"uso": "", "uso, hardened critic": f"--critic {HARDENED}"}        # the model's own first
BASELINES = {                                    # of the reason loss
    "": "",                                      # m_0, as in the paper
    ", m_0 above 0": "--m0 above-0",
    ", no m_0": "--m0 none"}
GAMED = {                                        # runs by lambda, for each critic that judges
    "own": {0: "sft", .25: "uso", 1: "lambda 1", 3: "lambda 3"},
    "hardened": {0: "sft", .25: "uso, hardened critic", 1: "lambda 1, hardened critic",
                 3: "lambda 3, hardened critic"}}
GAMED_RUNS = list(dict.fromkeys([BASE, *GAMED["own"].values(), *GAMED["hardened"].values()]))
OBJECTIVES = [BASE, "sft", "rwr", "uso"]         # Table 4, Figure 4
HEADLINE = {"USO": "uso", "USO, hardened critic, no m_0": "uso, hardened critic, no m_0"}
CHOICE = f"--pairs 2800 --critic {HARDENED}"     # of the edits that are learnt
OWN_EDITS = "own edits"
JUDGED = f"--lambda 0.1 --critic {HARDENED}"
LEARNERS = {"sft": "",                           # what does a frozen VLM make up for in targets?
            OWN_EDITS: f"--pairs 4000 {JUDGED}"}
TRIPLETS, ALL_TRIPLETS = (50, 100, 300, 1200), 1200       # the last is train.py's default
VARIED = {                                       # own edits, with one thing another
    "300 pairs": f"--pairs 300 {JUDGED}",
    "1100 pairs": f"--pairs 1100 {JUDGED}",
    "the triplets' sources": f"--objective refl --m0 none {JUDGED}",
    "with m_0": f"--pairs 4000 --m0 source {JUDGED}",
    "own VLM judges": "--pairs 4000 --lambda 0.1",
    "lambda 1": f"--pairs 4000 --lambda 1 --critic {HARDENED}",
    "lambda 3": f"--pairs 4000 --lambda 3 --critic {HARDENED}"}


def all_runs() -> dict[str, str]:
    """The flags of each run, by name, beside TARGETS; what is not named has train.py's default."""
    runs = {objective: f"--objective {objective}" for objective in ("sft", "uso", "rwr", "refl")}
    for critic, flags in CRITICS.items():
        for baseline, more in BASELINES.items():
            runs.setdefault(critic + baseline, f"{flags} {more}")
    for lam, run in {**LAMBDAS, **GAMED["own"]}.items():
        runs.setdefault(run, f"--lambda {lam}")
    for lam, run in GAMED["hardened"].items():
        runs.setdefault(run, f"--lambda {lam} --critic {HARDENED}")
    for tau, run in TAUS.items():
        runs.setdefault(run, f"--tau {tau}")
    for run, flags in LEARNERS.items():
        runs.setdefault(run, flags)
        for n in TRIPLETS:
            runs.setdefault(run_of_triplets(run, n), f"{runs[run]} --items {n}")
    return runs


def run_of_triplets(run: str, n: int) -> str:
    """The run on so many triplets."""
    return run if n == ALL_TRIPLETS else f"{run}, {n} triplets"


RUNS = all_runs()
SFT_ON_FEW, OWN_EDITS_ON_FEW = run_of_triplets("sft", 100), run_of_triplets(OWN_EDITS, 100)
CHOSEN_ON_FEW = OWN_EDITS_ON_FEW + HALF + CHOSEN

# which runs a figure compares with SFT on as many triplets, by what it calls them
ON_FEW = {"own edits": OWN_EDITS_ON_FEW, "halfway to SFT": OWN_EDITS_ON_FEW + HALF}
CHOSEN_TOO = ON_FEW | {"chosen of halfway's": CHOSEN_ON_FEW}
VARIED_ON_FEW = {x: run_of_triplets(f"{OWN_EDITS}, {x}", 100) for x in VARIED}
RUNS |= {VARIED_ON_FEW[x]: f"{flags} --items 100" for x, flags in VARIED.items()}
OVER_STEPS = {x: OWN_EDITS_ON_FEW + ("" if x == 1 else f", {x} x steps")
              for x in (.25, .5, 1, 2, 4)}
VARIED_ON_FEW |= {"twice the steps": OVER_STEPS[2], "four times the steps": OVER_STEPS[4]}
TWICE = {"own edits": OWN_EDITS_ON_FEW, "SFT, twice the steps": SFT_ON_FEW + ", 2 x steps",
         "own edits, twice the steps": OVER_STEPS[2]}
GAMED_OWN = [SFT_ON_FEW, *OVER_STEPS.values(), VARIED_ON_FEW["lambda 1"], VARIED_ON_FEW["lambda 3"],
             OWN_EDITS_ON_FEW + HALF, CHOSEN_ON_FEW]
IN_DRIFT = {"USO": "uso", "own edits": OWN_EDITS, "halfway to SFT": OWN_EDITS + HALF}


def parents_of(run: str) -> list[str]:
    """The runs that must be there before: one whose edits are chosen, or two that are mixed."""
    if run.endswith(CHOSEN):
        return [run.removesuffix(CHOSEN)]
    if run.endswith(HALF):
        own_edits = run.removesuffix(HALF)
        return [own_edits.replace(OWN_EDITS, "sft"), own_edits]
    return []


def run_on(run: str, targets: str, longer: bool = False) -> str:
    """The run on these TARGETS, whatever the study's are; longer: for fifteen epochs, not three."""
    return f"{run} on {targets}{', 5 x steps' if longer else ''}"


def name_and_targets(run: str) -> tuple[str, str]:
    """What `run_on` put together: the run's name, and its targets; "" are the study's own."""
    name, _, targets = TIMES_STEPS.sub("", run).partition(" on ")
    return name, targets


# ------------------------------------------------------------------------ the study and its folders

@dataclass(frozen=True)
class Study:
    """How large everything is, and where it goes; the same for all tables and figures."""
    folder: Path                                 # of the runs and their scores
    out: Path                                    # of the tables and figures
    weights: str | None = None                   # the base; None is weights/tiny
    seeds: range = range(3)                      # of the trainings
    n: int = 200                                 # samples of a split
    steps: int = 500                             # of each training
    targets: str = "wrong-30"                    # of each training, a key of TARGETS
    flags: list[str] = field(default_factory=list)                           # for every training

    def seeds_of(self, run: str) -> range:
        """One for the base, which has none."""
        return range(1) if run == BASE else self.seeds

    def full_name(self, run: str) -> str:
        """The run with its targets and steps, which tell it from those of other studies."""
        if run == BASE:
            return BASE
        name, targets = name_and_targets(run)
        return f"{name} on {targets or self.targets}, {self.steps_of(run)} steps"

    def steps_of(self, run: str) -> int:
        """The study's steps, or so many times as many."""
        times = TIMES_STEPS.search(run)
        return round(float(times[1]) * self.steps) if times else self.steps

    def run_folder(self, run: str, seed: int) -> Path:
        """Where train.py keeps the run."""
        name = "".join(c if c.isalnum() or c == "." else "-" for c in self.full_name(run))
        return self.folder / f"{name}-{seed}"

    @property
    def scores_folder(self) -> Path:
        """Where evaluate.py keeps all scores of so many samples."""
        return self.folder / f"eval-{self.n}"

    def model_folder(self, run: str, seed: int) -> str | None:
        """What loads the run's model; None is weights/tiny."""
        return self.weights if run == BASE else str(self.run_folder(run, seed))


class Score(NamedTuple):
    """A run's model on a subset of a split."""
    run: str
    subset: str
    split: str = "test"

    def folder(self, study: Study, seed: int) -> Path:
        """Where evaluate.py keeps the score."""
        if self.run == BASE:
            name = Path(study.weights or "tiny").name
        else:
            name = study.run_folder(self.run, seed).name
        return study.scores_folder / f"{name}-{self.subset}-{self.split}"


# ------------------------------------------------------------------------ what is needed for what

def on_test(runs: Iterable[str], *subsets: str) -> list[Score]:
    """The scores of these runs on these subsets' test split."""
    return [Score(run, subset) for run in runs for subset in subsets]


def on_val(runs: list[str]) -> list[Score]:
    """The scores of these runs on RAVE's val split, with both critics' margins: is one gamed?"""
    return [Score(run, "rave", "val") for run in runs]


class Cell(NamedTuple):
    """A place on the map: USO with one critic and baseline, on one kind of data, for so long."""
    critic: str
    baseline: str
    targets: str
    longer: bool

    @property
    def runs(self) -> tuple[str, str]:
        """SFT and USO."""
        return (run_on("sft", self.targets, self.longer),
                run_on(self.critic + self.baseline, self.targets, self.longer))


# each critic on all data with m_0, and each other baseline on drifted data
MAP = [Cell(critic, "", targets, longer=False) for critic in CRITICS for targets in TARGETS]
MAP += [Cell(critic, baseline, "drift-60", longer=False)
        for critic in CRITICS for baseline in BASELINES if baseline]
# the paper's regime: each critic on drifted data with m_0, for five times the steps
MAP_LONGER = [Cell(critic, "", "drift-60", longer=True) for critic in CRITICS]


def runs_of(cells: list[Cell]) -> list[str]:
    """What is to be trained for them."""
    return sorted({run for cell in cells for run in cell.runs})


# for each table and figure the scores that it shows, in the order that --all makes them
NEEDED_SCORES = {
    "table 4": on_test(OBJECTIVES, "rave", "icvg"),
    "figure 4": on_test(OBJECTIVES, "rave"),
    "figure samples": on_test([BASE, "sft", "uso"], "rave"),
    "table 3": on_test([BASE, "sft", "uso"], "literal"),
    "table 2": on_test([BASE, "sft", "uso"], "cross"),
    "table 5": on_test(LAMBDAS.values(), "rave"),
    "table 6": on_test([BASE, "sft", *TAUS.values()], "rave"),
    "figure gradient": [],           # looks at the base only
    "figure gamed": on_val(GAMED_RUNS),
    "figure headline": on_test([BASE, "sft", *HEADLINE.values()], "rave"),
    "figure one-step": on_test([BASE, "sft", "uso"], "rave"),
    "figure map": on_test(runs_of(MAP), "rave"),
    "figure map-longer": on_test(runs_of(MAP_LONGER), "rave"),
    "figure own-edits": on_test([BASE, SFT_ON_FEW, *ON_FEW.values()], "rave"),
    "figure varied": on_test([BASE, SFT_ON_FEW, OWN_EDITS_ON_FEW, *VARIED_ON_FEW.values()], "rave"),
    "figure gamed-own": on_val(GAMED_OWN),
    "figure twice": on_test([BASE, SFT_ON_FEW, *TWICE.values()], "rave"),
    "figure chosen": on_test([BASE, SFT_ON_FEW, *CHOSEN_TOO.values()], "rave"),
    "figure icvg": on_test([BASE, SFT_ON_FEW, *CHOSEN_TOO.values()], "icvg"),
    "figure drift": on_test([BASE, "sft", *IN_DRIFT.values()], "rave"),
    "figure triplets": on_test([run_of_triplets(run, n) for run in LEARNERS for n in TRIPLETS],
                               "rave"),
}


def needs_margins(score: Score) -> bool:
    """Whether Figure 4 or --figure gamed needs two critics' margins beside the scores."""
    name, _ = name_and_targets(score.run)
    return score.split == "val" or (name in OBJECTIVES and score.subset == "rave")
