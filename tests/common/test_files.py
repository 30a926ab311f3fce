"""Files and errors: what can be written, what kills left, one line for the user, torchrun's too."""

import os
import resource
import subprocess
import sys

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from common.files import BadInput, check_writable, remove_leftovers, run_script


def python(code, **variables):
    return subprocess.run([sys.executable, "-c", code], env=os.environ | variables,
                          capture_output=True, text=True)


def test_what_can_be_written_is_tried_and_leaves_nothing(tmp_path):
    for path in (tmp_path / "new/folder/a.txt", tmp_path / "b.PNG"):
        check_writable(path, ".txt", ".png")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))        # a full disk
    try:
        with pytest.raises(BadInput, match="a.txt: cannot be written .*; choose .* has room"):
            check_writable(tmp_path / "a.txt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_found_at_once(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, words in (
            (tmp_path, "it is a folder"), (tmp_path / "file" / "a", "file: Not a directory"),
            (tmp_path / "loop" / "a", "loop: Too many levels"), ("/dev/null", "a device"),
            ("/dev/null/a", "Not a directory"), ("/proc/a/b", "/proc: ")):
        with pytest.raises(BadInput, match=f"cannot be written .*{words}"):
            check_writable(path)
    with pytest.raises(BadInput, match=r"r.txt: is written as .png; let its name end so"):
        check_writable(tmp_path / "r.txt", ".png")


def test_a_terminal_without_these_letters():
    """Latin-1 has no Cyrillic; and Ctrl-C while libraries load is a line."""
    done = python("from common.files import run_script; run_script(lambda: print('\u0436.mp4'))",
                  PYTHONIOENCODING="latin-1", LC_ALL="C")
    assert (done.returncode, done.stdout) == (0, "\\u0436.mp4\n"), done.stderr
    done = python("import common; raise KeyboardInterrupt")
    assert done.returncode and done.stderr == "\nstopped\n"


@pytest.mark.parametrize("variables, words", [
    ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "is 2, but MASTER_ADDR is not set"),
    ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"), ({"RANK": ""}, "RANK is ''")])
def test_ranks_in_part(variables, words):
    done = python("from common.files import run_script\n"
                  "from common.distributed import start\nrun_script(start)", **variables)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and words in done.stderr


def test_what_a_killed_run_left_is_removed(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    stale = tmp_path / f"clips/a.tmp{dead.pid}.mp4"
    others = [tmp_path / f"clips/a.tmp{os.getpid()}.mp4", tmp_path / "clips/a.tmpl.mp4"]
    folder = tmp_path / f"model.tmp{dead.pid}"
    for path in (stale, *others, folder / "model.json"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    remove_leftovers(tmp_path)
    assert not stale.exists() and not folder.exists() and all(path.exists() for path in others)


def test_torchrun_ends_with_the_line(tmp_path, monkeypatch, capsys):
    """Read by torch's own classes, which make the last thing that torchrun prints."""
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    monkeypatch.setattr(sys, "argv", ["train.py"])

    def main():
        raise BadInput("--tau 2: is too large")
    with pytest.raises(SystemExit):
        run_script(main)
    line = "train.py: --tau 2: is too large"
    assert capsys.readouterr().err == f"{line}\n"
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(file))
    assert f"traceback : {line}\n" in str(ChildFailedError("train.py", {0: failure}))
