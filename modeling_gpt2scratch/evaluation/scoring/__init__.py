"""Log-likelihoods of any causal language model: encoding, batches, trees of texts, processes.

In: a transformers model, its tokenizer and texts. Out: nats for each token or continuation.
"""
