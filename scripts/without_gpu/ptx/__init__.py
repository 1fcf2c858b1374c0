"""Runs Triton's kernels as compiled for an NVIDIA GPU, on CPU tensors, without a GPU. README.md tells how.

From the top: ``plugin`` (pytest), ``driver`` (what Triton launches by), ``device`` (programs, counts), ``machine`` (threads),
``instructions`` and ``memory``, ``syntax`` (PTX text), ``values``, ``rounding`` and ``approximation`` (numbers).

It imports nothing: the plugin has to set variables before anything imports Triton.
"""
