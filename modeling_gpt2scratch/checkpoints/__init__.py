"""Checkpoints: what they hold, how they are written in the background, found, verified and kept.

In: a model, its optimizer and a step. Out: a directory that is complete or absent.
"""
