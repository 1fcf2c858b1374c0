"""Runs lines of PTX on arrays, and compares them with exact arithmetic."""
