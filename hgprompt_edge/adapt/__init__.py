"""Re-learn the mixing weights on a device."""
