"""What tracediff answered on many pairs when the answers were last frozen, and whether it still does: see `__main__`."""
