"""From scores to what you read: paired tests, table, files, cache, samples, pictures.

In: estimates and samples for each model and task. Out: Markdown, results.json, PNG.
"""
