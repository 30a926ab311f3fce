"""Files: what can be written, and what kills left."""

import os
import resource
import subprocess

import pytest

from common.files import BadInput, check_writable, remove_leftovers


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
    for path, words in ((tmp_path, "it is a folder"),
                        (tmp_path / "file" / "a", "file: Not a directory")):
        with pytest.raises(BadInput, match=f"cannot be written .*{words}"):
            check_writable(path)
    with pytest.raises(BadInput, match=r"r.txt: is written as .png; let its name end so"):
        check_writable(tmp_path / "r.txt", ".png")


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
