"""What mixing is worth beside the alternatives."""
