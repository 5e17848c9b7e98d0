"""The families, one class for each architecture, imported when a file needs them (registry.py)."""
