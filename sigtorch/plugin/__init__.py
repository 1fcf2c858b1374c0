"""Plugging sigtorch into models that exist."""
