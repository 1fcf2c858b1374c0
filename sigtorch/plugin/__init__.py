"""Plugs sigtorch into existing models."""
