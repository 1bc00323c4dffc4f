"""Ports that arrive as files of arrays, under names of their own: models, ways to name and lay out, faults, and how they are scored."""
