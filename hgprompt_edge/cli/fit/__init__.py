"""`hgedge fit`: learn how to mix the source prompts for a task."""

from hgprompt_edge.cli.fit.command import fit as fit
