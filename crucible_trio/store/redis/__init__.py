"""The store in Redis, which several processes share."""
