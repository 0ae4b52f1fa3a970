"""The processes of a run: how they meet, fail together, stop together, and name who is missing.

In: the launcher's environment. Out: an Accelerator, a model that is wrapped for DDP, FSDP2 or
DeepSpeed, and agreements that hold on every process.
"""
