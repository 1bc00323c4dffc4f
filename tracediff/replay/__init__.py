"""The recorded operations of a reference computed again, in NumPy, from values that were recorded."""
