"""Passes over CPU tensors, for the few operations where one pays; files and functions are named as in kernels."""
