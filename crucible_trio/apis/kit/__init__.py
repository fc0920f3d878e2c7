"""Shared by all APIs: parsing requests, starting streams, writing event streams, and error answers."""
