"""Passes over CPU tensors, for the few operations that gain by one; files and functions are named as in kernels."""
