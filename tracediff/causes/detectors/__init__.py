"""One detector a file for each family of causes: it tries its edits on a `Scene`."""
