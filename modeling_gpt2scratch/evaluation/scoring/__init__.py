"""Log-likelihoods of any causal language model: encoding, batches, shared prefixes, processes.

In: a transformers model, its tokenizer and texts. Out: nats for each token or continuation.
"""
