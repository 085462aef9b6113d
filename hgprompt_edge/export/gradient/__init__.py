"""The graph of the gradient, for adaptation on a device."""
