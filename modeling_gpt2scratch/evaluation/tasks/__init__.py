"""The benchmarks, one file each; one file for each kind of benchmark; the registry.

In: official files or Hub data sets. Out: estimates for each metric of a model.
"""
