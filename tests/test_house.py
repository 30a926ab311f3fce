"""The house: which folder may import which, and that every line fits on a page."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ("presets", "vlm", "model", "critic", "train", "data", "evaluate", "bench", "sample")
FOLDERS = ("common", "tiny", "pretrain", "rvebench", "rvedata", "realsize", "experiments")
AROUND = {"pretrain", "rvebench", "rvedata", "realsize", "experiments"}
FILES = sorted(path for name in ("*.py", *(f"{folder}/**/*.py" for folder in FOLDERS)) for path in ROOT.glob(name))

# what each root script, and each folder, may import of ours
METHOD = {"common", "presets", "vlm", "model", "data", "critic", "tiny"}
MAY_IMPORT = {
    "common": {"common"},
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


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports anywhere in it, with their dots."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def tops(path: Path) -> set[str]:
    """Of `imports_of`, the root scripts and folders of ours."""
    ours = {*SCRIPTS, *FOLDERS}
    return {name.partition(".")[0] for name in imports_of(path)} & ours


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_go_one_way(path):
    place = path.relative_to(ROOT).parts[0].removesuffix(".py")
    beyond = tops(path) - MAY_IMPORT[place]
    assert not beyond, f"{path.relative_to(ROOT)} imports {', '.join(sorted(beyond))}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_root_script_needs_what_is_around_it(name):
    assert not tops(ROOT / f"{name}.py") & AROUND


def test_train_loads_no_library_of_the_folders_around_it():
    code = "import sys, train; print([n for n in ('openai', 'scenedetect', 'cv2', 'selenium') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_fit(path):
    long = [number for number, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 100]
    assert not long, f"{path.relative_to(ROOT)}: lines {long} are longer than 100 columns"
