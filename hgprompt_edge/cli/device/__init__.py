"""`hgedge device`: the tasks of a device folder."""

from hgprompt_edge.cli.device.command import app as app
