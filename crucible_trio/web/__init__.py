"""The HTTP side, on quart-trio."""
