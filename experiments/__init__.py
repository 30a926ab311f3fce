"""Does self-reflection work? Runs, tables and figures."""
