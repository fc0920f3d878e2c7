"""Routes for operators and orchestrators."""
