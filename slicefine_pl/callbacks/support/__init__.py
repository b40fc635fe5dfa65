"""Parts that the public callbacks are built from."""
