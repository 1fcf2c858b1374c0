"""The commands of ``python -m sigtorch``."""
