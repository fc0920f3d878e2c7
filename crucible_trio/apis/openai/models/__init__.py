"""OpenAI's models API."""
