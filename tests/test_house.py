"""The house: imports go one way, lines fit on a page, the README has the step."""

import ast
import inspect
import textwrap
from pathlib import Path

import train

ROOT = Path(__file__).parents[1]
SCRIPTS = ("presets", "vlm", "model", "critic", "train", "data", "evaluate", "bench", "sample")
FOLDERS = ("common", "tiny", "pretrain", "rvebench", "rvedata", "realsize", "experiments")

# What each root script, and each folder, may import of ours: no script needs what is around it.
METHOD = {"common", "presets", "vlm", "model", "data", "critic", "tiny"}
MAY_IMPORT = {
    "common": {"common", "presets"},
    "presets": set(),
    "vlm": {"common"},
    "model": {"common", "presets", "vlm"},
    "tiny": {"common", "tiny"},
    "data": METHOD - {"critic", "data"},
    "critic": METHOD - {"critic"},
    "evaluate": METHOD,
    "train": METHOD | {"evaluate"},
    "sample": {"common", "presets", "model"},
    "bench": METHOD | {"evaluate", "train"},
    "pretrain": METHOD | {"pretrain"},
    "rvebench": METHOD | {"evaluate", "rvebench"},
    "rvedata": METHOD | {"rvebench", "rvedata"},
    "realsize": {*SCRIPTS, "common", "tiny", "realsize"},
    "experiments": {*SCRIPTS, "common", "tiny", "rvebench", "experiments"}}


def python_files(*folders: str) -> list[Path]:
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted([*ROOT.glob("*.py"), *files])


def imports_of(path: Path) -> set[str]:
    """The root scripts and folders of ours that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else node.module.partition(".")[0])
    return found & {".", *SCRIPTS, *FOLDERS}


def test_arrows_go_one_way():
    wrong = []
    for path in python_files(*FOLDERS):
        place = path.relative_to(ROOT).parts[0].removesuffix(".py")
        beyond = imports_of(path) - MAY_IMPORT[place]
        wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in sorted(beyond)]
    assert not wrong


def test_lines_fit():
    wide = [f"{path.relative_to(ROOT)}:{number}" for path in python_files(*FOLDERS, "tests")
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
            if len(line) > 100]
    assert not wide


def test_the_readme_has_the_step_whole():
    step = textwrap.indent(inspect.getsource(train.uso_step), "    ")
    assert step in (ROOT / "README.md").read_text("utf-8")
