"""What a run writes down while it trains: metrics.jsonl, wandb, TensorBoard, trackio.

In: values by step. Out: lines and curves. No tracker can end a run.
"""
