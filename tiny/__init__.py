"""The tiny world: scenes, rules, triplets and the oracle that knows the answer."""

import common  # noqa: F401      before what takes seconds to load: Ctrl-C is a line
