"""`hgedge export`: fold a bundle into one model file, proven equal to PyTorch."""

from hgprompt_edge.cli.export.command import export as export
