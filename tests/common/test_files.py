"""Files and errors: what can be written, what kills left, one line for the user, torchrun's too."""

import os
import resource
import subprocess
import sys

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from common.files import BadInput, check_writable, remove_leftovers, run_script


def test_writable_is_tried_and_leaves_nothing(tmp_path):
    check_writable(tmp_path / "new" / "folder" / "a.txt")
    check_writable(tmp_path / "b.txt")
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


def test_a_suffix_says_how_it_is_written(tmp_path):
    check_writable(tmp_path / "a.PNG", ".png")
    with pytest.raises(BadInput, match=r"r.txt: is written as .png; let its name end so"):
        check_writable(tmp_path / "r.txt", ".png")


def test_a_terminal_without_these_letters(tmp_path):
    """Latin-1 has no Cyrillic; and Ctrl-C while libraries load is a line."""
    code = "from common.files import run_script; run_script(lambda: print('\u0436.mp4'))"
    latin = {**os.environ, "PYTHONIOENCODING": "latin-1", "LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-c", code], env=latin, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\\u0436.mp4\n"), done.stderr
    done = subprocess.run([sys.executable, "-c", "import common; raise KeyboardInterrupt"],
                          capture_output=True, text=True)
    assert done.returncode and done.stderr == "\nstopped\n"


@pytest.mark.parametrize("variables, words", [
    ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "is 2, but MASTER_ADDR is not set"),
    ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"), ({"RANK": ""}, "RANK is ''")])
def test_ranks_in_part(variables, words):
    code = ("from common.files import run_script\n"
            "from common.distributed import start\nrun_script(start)")
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | variables,
                          capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and words in done.stderr


def test_a_full_disk_is_found_at_once(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(BadInput, match="a.txt: cannot be written .*; choose .* has room"):
            check_writable(tmp_path / "a.txt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_removed(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / "clips").mkdir()
    stale, running, other = (tmp_path / "clips" / name for name in (
        f"a.tmp{dead.pid}.mp4", f"a.tmp{os.getpid()}.mp4", "a.tmpl.mp4"))
    for path in (stale, running, other):
        path.write_bytes(b"x")
    folder = tmp_path / f"model.tmp{dead.pid}"
    folder.mkdir()
    (folder / "model.json").write_text("{}")
    remove_leftovers(tmp_path)
    assert not stale.exists() and running.exists() and other.exists() and not folder.exists()


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
