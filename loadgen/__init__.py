"""A world to score and a driver; imports nothing of ours but the contract."""
