"""Data that belongs to the package: names, no code."""
