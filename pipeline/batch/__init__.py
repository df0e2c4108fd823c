"""Batches of a run: cut, submitted once, asked after, taken. What a service says is data here, never an exception."""
