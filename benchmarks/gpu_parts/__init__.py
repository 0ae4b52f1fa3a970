"""The parts of `gpu_day.py`, one module each; each runs in a process of its own.

A part has a function `run(plan, record)`: it is told what is there and how many seconds it has, and
records each result as soon as there is one, because it ends when its time is over.
"""
