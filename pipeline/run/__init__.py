"""One run: prepared and checked, its engine, from the plan to the output table."""
