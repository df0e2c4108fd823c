"""What may be spent: caps, what is reserved for requests in flight, and the book of days and months."""
