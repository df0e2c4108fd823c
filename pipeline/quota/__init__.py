"""Bookkeeping of what a project may use: requests, tokens, days."""
