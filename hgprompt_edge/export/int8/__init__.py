"""Quantised models."""
