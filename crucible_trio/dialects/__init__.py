"""How a log looks on one wire: a dialect is a fold over the log's records."""
