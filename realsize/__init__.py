"""The released weights, one GPU or many, and what it costs."""

import common  # noqa: F401      before what takes seconds to load: Ctrl-C is a line
