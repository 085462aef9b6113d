"""Prompts, banks of them and mixing weights."""
