"""Runs, launches and counts compiled kernels where there is no GPU.

``ptx`` executes them on the CPU, ``standin`` launches them over a driver that does nothing, and ``machine_code`` counts
instructions. Imports nothing: the plug-in for pytest sets variables before anything imports Triton.
"""
