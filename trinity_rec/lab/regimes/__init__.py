"""Where each claim of arXiv 2509.24203 holds: a map over learning rate, lag and task.

`rules` says what is run and how it is judged, written before any run; `run` goes on where it stopped; `report` writes
and draws.
"""
