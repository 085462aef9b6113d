"""How good exported models are on labelled images. Needs no PyTorch."""
