"""The method: the HGPrompt objective, its optimisation, and the choice of what is kept."""
