"""Prompted forward passes, backbones, heads and prompt training (torch, timm)."""
