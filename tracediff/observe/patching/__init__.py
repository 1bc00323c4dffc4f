"""How calls are seen: attributes of modules, classes and packages are exchanged for the length of a run."""
