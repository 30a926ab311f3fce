"""How the tiny VAE, VLM and base generator were made: see README.md."""

import common  # noqa: F401      before what takes seconds to load: Ctrl-C is a line
