"""Where documents come from: this machine's docstrings, local files, the Hub; mixtures and filters.

In: what `--dataset` names. Out: documents, in an order that depends on the arguments alone.
"""
