"""What several commands share: options, console, tables."""
