"""RVE-Dataset: from Ditto-1M and raw films to reason-informed triplets."""

import common  # noqa: F401      before what takes seconds to load: Ctrl-C is a line
