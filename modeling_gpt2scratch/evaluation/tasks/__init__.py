"""The benchmarks, one file each; the kinds of benchmark that they share; the registry.

In: official files or Hub data sets. Out: estimates for each metric of a model.
"""
