"""What every folder uses: files and errors, ranks, the resumable run, intervals, videos, pictures.

Commands import it before the libraries that take seconds to load, so that Ctrl-C is a line by then.
"""

import sys


def _end_with_a_line(kind, error, traceback, otherwise=sys.excepthook) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("\nstopped", file=sys.stderr)
    else:
        otherwise(kind, error, traceback)


sys.excepthook = _end_with_a_line
