"""Why two sides differ: one file for each family of causes, each with its evidence and its confirmation.

`weights` compares parameters without running anything: `checkpoint` reads them, `matching` and `pairing` find what belongs together,
`judging` and `placement` say what is wrong, `rules` writes the conversion that would mend it.
"""
