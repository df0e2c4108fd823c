"""A run whose table is cut into shards, which several workers run under one quota and one budget."""
