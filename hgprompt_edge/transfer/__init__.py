"""The HGPrompt objective and its optimisation (torch, numpy)."""
