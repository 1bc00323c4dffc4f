"""Compares the weights of two sides without a run: what never loaded, is missing, transposed, swapped, rounded or merged wrongly.

`sources` reads them, `matching` and `pairing` find what belongs together, `findings` and `placement` say what is wrong, `rules` writes the
conversion that would mend it.
"""
