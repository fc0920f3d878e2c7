"""The event log of a stream: the contract, and the log in memory."""
