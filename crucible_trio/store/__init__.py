"""Where a pipeline's streams are found and kept: the contract, and the store in memory."""
