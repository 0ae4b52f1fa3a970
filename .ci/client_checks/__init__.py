"""Checks that other programs write our tokens from our checkpoints; one module for each program.

Into a module: a directory with both forms of a checkpoint and `expected.json`. Out of it: one line
of JSON on standard output, with a verdict for each form. `.ci/clients` runs them.
"""
