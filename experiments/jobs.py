"""How are hours of training and scoring done, on all cores, so that a stop loses nothing?

A *job* is one command, as a user would type it, and the file that is there once it is done: a job
whose file exists is not done again. The jobs of a run are a *chain*: it is trained, then scored.
Chains are independent; each core takes the next one when it is free. A job that was stopped goes on
where it was, since train.py and evaluate.py do.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from tqdm import tqdm

from common.files import BadInput
from experiments.runs import (BASE, CHOICE, CHOSEN, HALF, NEEDED_SCORES, RUNS, SFT_ON_FEW, TARGETS,
                              Score, Study, name_and_targets, needs_margins, parents_of)

ROOT = Path(__file__).parents[1]
STOPPED = 130                                    # the exit code of a command that Ctrl-C stopped


class Job(NamedTuple):
    """A command, and the file that is there once it is done."""
    name: str
    command: list[str]
    makes: Path


# ------------------------------------------------------------------------ which commands

def train_job(study: Study, run: str, seed: int) -> Job:
    """The training of a run, or the mixing of two."""
    folder = study.run_folder(run, seed)
    if run.endswith(HALF):
        parents = [str(study.run_folder(parent, seed)) for parent in parents_of(run)]
        command = [sys.executable, "-m", "experiments.mix", *parents, "--out", str(folder)]
        return Job(training_name(study, run, seed), command, folder / "model" / "model.json")
    name, targets = name_and_targets(run)
    chosen = []
    if name.endswith(CHOSEN):
        name, chosen = SFT_ON_FEW, ["--chosen", str(chosen_folder(study, run, seed))]
    command = [sys.executable, "-m", "experiments.train", *RUNS[name].split(), *chosen,
               *TARGETS[targets or study.targets].split(),
               "--steps", str(study.steps_of(run)), "--seed", str(seed),
               "--out", str(folder), "--cache", str(study.folder / "cache"), "--eval-items", "0"]
    if study.weights:
        command += ["--weights", study.weights]
    return Job(training_name(study, run, seed), command + study.flags,
               folder / "model" / "model.json")


def choose_job(study: Study, run: str, seed: int) -> Job:
    """The choice of the edits that a run learns, too."""
    parent, = parents_of(run)
    folder = chosen_folder(study, run, seed)
    command = [sys.executable, "-m", "experiments.choose", str(study.run_folder(parent, seed)),
               *CHOICE.split(), "--out", str(folder)]
    return Job(f"choose edits of {study.full_name(parent)}, seed {seed}", command,
               folder / "chosen.safetensors")


def chosen_folder(study: Study, run: str, seed: int) -> Path:
    folder = study.run_folder(run, seed)
    return folder.with_name(f"edits-for-{folder.name}")


def training_name(study: Study, run: str, seed: int) -> str:
    return f"train {study.full_name(run)}, seed {seed}"


def score_job(study: Study, score: Score, seed: int) -> Job:
    """The scoring of a run's model."""
    script = ["-m", "experiments.evaluate"] if needs_margins(score) else [str(ROOT / "evaluate.py")]
    command = [sys.executable, *script, "--subset", score.subset, "--split", score.split,
               "--n", str(study.n), "--out", str(study.scores_folder)]
    if score.run != BASE:
        command += ["--checkpoint", str(study.run_folder(score.run, seed))]
    elif study.weights:
        command += ["--checkpoint", study.weights]
    name = f"{score.subset} {score.split} {study.full_name(score.run)}, seed {seed}"
    return Job(f"{name}, {study.n} samples", command, score.folder(study, seed) / "table.md")


def plan(study: Study, items: list[str]) -> list[list[Job]]:
    """The chains that the tables and figures `items` need, without the jobs that are done. Runs
    with parents are not among them before these are trained: plan again when they are."""
    scores_of_run = {}
    for item in items:
        for score in NEEDED_SCORES[item]:
            for seed in study.seeds_of(score.run):
                parents = [study.run_folder(parent, seed) for parent in parents_of(score.run)]
                if not all((parent / "model").is_dir() for parent in parents):
                    continue
                scores = scores_of_run.setdefault((score.run, seed), [])
                if score not in scores:
                    scores.append(score)
    chains = []
    for (run, seed), scores in scores_of_run.items():
        chain = [choose_job(study, run, seed)] if run.endswith(CHOSEN) else []
        chain += [train_job(study, run, seed)] if run != BASE else []
        chain += [score_job(study, score, seed) for score in scores]
        chain = [job for job in chain if not job.makes.exists()]
        if chain:
            chains.append(chain)
    return chains


# ------------------------------------------------------------------------ doing them

def do_all(study: Study, chains: list[list[Job]]) -> None:
    """Do the chains, one on each core. Raises BadInput with the last line of a failed job's log."""
    cores = SimpleQueue()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)

    def pin_to_a_core():                         # this thread, and the commands that it starts
        os.sched_setaffinity(0, {cores.get()})

    bar = tqdm(total=sum(map(len, chains)), desc="jobs", unit="job")

    def do(chain):
        for job in chain:
            do_job(study, job)
            bar.update()

    with bar, ThreadPoolExecutor(cores.qsize(), initializer=pin_to_a_core) as pool:
        futures = [pool.submit(do, chain) for chain in chains]
        try:
            for future in futures:
                future.result()
        except BaseException:                    # the jobs that run end first, no other one begins
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def do_job(study: Study, job: Job) -> None:
    """Do one job; what it prints goes into a log."""
    log = study.folder / "logs" / f"{job.name.replace(' ', '-').replace(',', '')}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("w", encoding="utf-8") as file:
        ended = subprocess.run(job.command, stdout=file, stderr=file, env=environment)
    if ended.returncode == STOPPED:
        raise KeyboardInterrupt
    if ended.returncode or not job.makes.exists():
        lines = log.read_text("utf-8").splitlines() or ["nothing"]
        raise BadInput(f"{job.name} failed, {log} says: {lines[-1]}")
