"""The whole path, measured beside what people use today: `python -m benchmarks`, or `make bench`."""
