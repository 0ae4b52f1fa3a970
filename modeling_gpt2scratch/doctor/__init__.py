"""Is this machine fit to train? Checks of packages, devices, processes, disk and network.

In: an output directory. Out: one finding for each check, with what to do about it.
"""
