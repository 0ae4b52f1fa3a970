"""Optimizers and schedules: AdamW, Muon, parameter groups, learning rates.

In: a model and a step. Out: an optimizer, and the rate of each of its groups.
"""
