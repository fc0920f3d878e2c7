"""The load generator. It uses as little CPU as Python allows, so that the server is the limit."""
