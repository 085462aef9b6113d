"""A device folder: one backbone for many tasks, and a file for each."""
