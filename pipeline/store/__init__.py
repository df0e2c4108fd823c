"""The run directory: everything that was paid for, on disk."""
