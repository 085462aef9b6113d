"""The command `hgedge`: one file a command."""
