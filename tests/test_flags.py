"""Bad flags of every command: one line that names the flag, before any work, and nothing written.

A row: the flags, as they are typed, and what the line says (a regular expression). The folder that
one is in holds `file`, which is no folder, and `broken/`, a run whose run.json is cut off.
"""

import importlib
import shlex
from pathlib import Path

import pytest

from common.files import BadInput

BAD = {
    "train": [
        ("--tau nan", "--tau"),
        ("--lr 2", r"--lr: must be in \[0, 1\], not 2"),
        ("--seed 4294967296", "--seed: must be .* below 2"),
        ("--step 3", "unrecognized arguments: --step"),
        ("--out ''", "--out is empty"),
        ("--out=", "--out is empty"),
        ("--ema 1", "--ema 1: would keep the weights of the start"),
        ("--wrong 0.7 --drift 0.7", "--wrong 0.7 --drift 0.7: are more than all targets"),
        ("--batch 6 --accumulate 4", "--batch 6 does not divide .*: pass a multiple of 4"),
        ("--resume nowhere", "nowhere/run.json: is missing or broken"),
        ("--resume broken", "broken/run.json: is missing or broken"),
        ("--resume broken --out other", "--resume broken --out other: .*; drop one"),
    ],
    "evaluate": [
        ("--subset cross --split train", "--split train.*never trained on"),
        ("--out file", "file/table.md: cannot be written"),
    ],
    "rvebench.score": [
        ("--judge openai", "required: --manifest"),
        ("--manifest m.jsonl", "--manifest: needs a method"),
    ],
    "rvebench.export_world": [("--out file", "file/bench.jsonl: cannot be written")],
    "rvebench.report": [
        ("broken", "broken: holds no results of this version"),
        ("broken --human none.csv", "--human none.csv: cannot be read"),
    ],
    "rvebench.study": [("broken --ratings file", "broken/study_key.json: cannot be read")],
    "critic": [("--out r.txt", "r.txt: is written as .png")],
    "bench": [("--out file/bench", "file/bench/bench.json: cannot be written")],
    "sample": [
        ("--video a.mp4 --instruction wait --out e.avi", "--out e.avi: is written as .mp4 or .gif"),
        ("--video a.mp4 --instruction ' ' --out e.mp4", "--instruction: is empty"),
        ("--video file/a --instruction wait --out file/a.mp4", "--out file/a.mp4: cannot be wri"),
    ],
    "experiments.train": [
        ("--objective rwr --lambda 0", "--lambda 0: would leave rwr without its critic"),
        ("--pairs no.jsonl", "--pairs no.jsonl: no such file"),
        ("--pairs 9 --objective rwr", "rwr has no use for them"),
        ("--pairs 9 --objective sft", "no critic is asked at lambda 0"),
        ("--critic nowhere", "--critic nowhere: holds no weights"),
    ],
    "experiments.moving_picture": [("--checkpoint x --out w.png", "w.png: is written as .gif")],
    "pretrain.vae": [("--out file", "cannot be written")],
    "pretrain.base": [("--weights nowhere", "cannot load nowhere")],
    "rvedata.rave": [
        ("", "the following arguments are required: --ditto, --videos"),
        ("--ditto x.json --videos nowhere", "nowhere: there is no such folder"),
        ("--ditto x.json --videos . --examples none", "--examples none: FileNotFoundError"),
    ],
    "rvedata.icvg": [
        ("--movies nowhere", "--movies nowhere: holds no film"),
        ("--movies . --shard 2/2", "--shard: must be i/n"),
        ("--movies . --bounds .9 .2", "--bounds 0.9 0.2: the first is above the second"),
    ],
    "rvedata.split": [
        ("--from nowhere", "nowhere: there is no such folder"),
        ("--from . --share 1.5", "--share: must be in"),
    ],
    "rvedata.merge": [
        ("--from . --out .", "--out .: is one of --from"),
        ("--from nowhere --out x", "nowhere: there is no such folder"),
    ],
    "realsize.convert": [
        ("--from broken", "broken: is no released directory: there is no ar_model/checkpoint"),
        ("--from . --to broken", "--to broken: is there already, and no model folder"),
    ],
}


@pytest.mark.parametrize("command, flags, words", [
    (command, flags, words) for command, rows in BAD.items() for flags, words in rows])
def test_a_bad_flag_is_one_line_before_any_work(tmp_path, monkeypatch, command, flags, words):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("no folder")
    Path("broken").mkdir()
    Path("broken/run.json").write_text('{"argv": [')
    before = sorted(tmp_path.rglob("*"))
    module = importlib.import_module(command)
    parse = getattr(module, "parse", module.main)        # some parse where they begin
    with pytest.raises(BadInput, match=words) as error:
        parse(shlex.split(flags))
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000
    assert sorted(tmp_path.rglob("*")) == before
