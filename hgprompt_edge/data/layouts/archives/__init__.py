"""Data sets in the layout of their archives, read by the classes that torchvision has for them."""
