"""Streams a reasoning model's output over Server-Sent Events: resumable, with backpressure, on trio."""
