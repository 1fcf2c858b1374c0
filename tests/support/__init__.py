"""Case tables, oracles and helpers that tests share."""
