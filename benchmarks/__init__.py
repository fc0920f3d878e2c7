"""Benchmarks of the path from model to client, compared with other servers: `python -m benchmarks` or `make bench`."""
