"""Services that answer prompts; the only importers of httpx."""
