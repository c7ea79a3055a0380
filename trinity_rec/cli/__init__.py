"""`trinity-rec`: results on stdout, messages on stderr, every error one line and a non-zero exit.

One file a command. Each is thin and imports what it runs only when it runs, so that `--help` answers at once.
"""

from trinity_rec.cli.entry import app, main

__all__ = ["app", "main"]
