"""What a device can do: precision, peak, compilation, memory, the micro-batch that fits, traces.

In: a device and a model. Out: settings for the run, and what it uses of the device.
"""
