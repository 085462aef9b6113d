"""Features of a frozen backbone, and what is cached of them."""
