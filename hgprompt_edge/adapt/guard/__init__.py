"""The guard: when new weights are taken over, and when the old ones stay (METHOD 7)."""
