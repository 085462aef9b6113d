"""Backbones, prompt banks and demo pictures for hgprompt-edge: data only, no code."""
