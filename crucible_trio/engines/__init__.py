"""Engines this package brings along."""
