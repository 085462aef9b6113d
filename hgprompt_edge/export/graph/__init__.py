"""The inference graph."""
