"""The promises of a GPU: routing, dispatch, sparse sums, gradients and a whole network's inference.

Times are those of the device, between events, with the second-level cache written over before each call. None of it
has run on a GPU yet; the tests build every experiment on the CPU in small.
"""
