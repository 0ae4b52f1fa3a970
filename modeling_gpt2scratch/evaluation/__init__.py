"""Scores of causal language models, ours and others', by published protocols.

In: models and the names of tasks. Out: estimates with standard errors, one table, results.json.
`scoring` computes log-likelihoods, `tasks` are the benchmarks, `results` is what is made of them.
"""
