"""Embeddings and the older completions: requests that go on to an upstream as they are."""
