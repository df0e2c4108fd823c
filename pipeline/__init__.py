"""Bulk LLM calls from a table to a table: quota-perfect, paid once, priced before they are sent."""

__version__ = "0.1.0"
