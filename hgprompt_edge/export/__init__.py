"""From a bundle to a file for a runtime."""
