"""Why two sides differ: one file for each family of causes, each with its evidence and its confirmation.

Two kinds of evidence. `weights` compares parameters without running anything: `checkpoint` reads them, `matching` and `pairing` find what
belongs together, `judging` and `placement` say what is wrong, `rules` writes the conversion that would mend it; `causes` says what that
means for a culprit. `detect` looks at the tensors of a divergence: `evidence` reads them into a `scene`, and each detector (`attention`,
`rotation`, `timesteps`, `normalisation`, `pointwise`, `combination`, `arrangement`, `calls`, `attributes`, `rounding`, `extent`) tries its
edits on it; where none is sure, `forms` looks for a short formula of `views`. What the kinds mean is told in docs/causes.md.
"""
