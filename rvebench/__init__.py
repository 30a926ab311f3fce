"""RVE-Bench: how good is any method, on any benchmark?"""

import common  # noqa: F401      before what takes seconds to load: Ctrl-C is a line
