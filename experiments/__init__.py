"""Does self-reflection work? Runs, tables and figures."""

import common  # noqa: F401      before what takes seconds to load: Ctrl-C is a line
