"""Frozen backbones and their prompted forward pass (torch, timm)."""
