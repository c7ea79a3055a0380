"""The arena: every off-policy correction on the same work, each at a learning rate of its own.

`plan` says what is run and by which rules it is judged, written before any run; `score` reads the numbers off the
curves; `questions` asks them what the field disagrees on; `run` puts them together and goes on where it stopped;
`report` writes and draws; `own` takes a YAML's algorithm in.
"""
