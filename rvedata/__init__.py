"""RVE-Dataset: from Ditto-1M and raw films to reason-informed triplets."""

import sys
from importlib.util import find_spec

import common  # noqa: F401      before what takes seconds to load: Ctrl-C is a line

missing = [module for module in ("cv2", "openai", "scenedetect") if find_spec(module) is None]
if missing:
    print(f"rvedata needs {', '.join(missing)}: pip install -r requirements-dev.txt",
          file=sys.stderr)
    sys.exit(2)
