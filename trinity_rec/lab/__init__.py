"""Off-policy reinforcement learning in one process, on the objective and the shaping that the plugin trains with.

Read `training.py` first: it is the whole of an experiment. `bandit.py` is the paper's three-armed bandit; `tasks/`
and `model.py` are the problems and the small language model, `warm_up.py` made the weights in `assets/`. `claims.py`
says what is measured and by which rule it is judged, `grid.py` runs it in parallel, `reproduce.py` puts it together.
`arena/` compares all algorithms, each at a rate of its own.
"""
