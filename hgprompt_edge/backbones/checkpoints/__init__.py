"""Checkpoints that others wrote, read as backbones."""
