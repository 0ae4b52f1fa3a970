"""A training run: its arguments, its parts wired together, and what watches over them.

In: a `TrainConfig`. Out: the directory of a run. `loop.py` is the algorithm, from top to bottom.
"""
