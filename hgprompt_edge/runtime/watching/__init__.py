"""Watching: folders that images come into, and the monitor that watches for a shift."""
