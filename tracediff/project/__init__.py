"""A project's cases: what is declared of them, what was accepted, and what a check of them found; plain data, below all views."""
