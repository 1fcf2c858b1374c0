"""Runs Triton's kernels as compiled for an NVIDIA GPU, on CPU tensors, without a GPU. See README.md beside this file."""
