"""A training run: its arguments, its parts wired together, and what watches over them.

In: a `TrainConfig` and an Accelerator. Out: the parts that `train_accelerate.py` loops over.
"""
