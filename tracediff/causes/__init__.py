"""Why two sides differ: the kinds of causes, the detectors that find them, and the assembly of all that is found.

`explanation.explain` gives the causes of everything that was located. They come from three sources: `from_pair` (the two divergent records
themselves), `from_tensors` (the tensors around them) and `from_weights` (the findings of `tracediff.parameters`).

For `from_tensors`, `scene_reader` reads a divergence into a `scene`, and each of `detectors` tries its edits on it. Where none is sure,
`formulas` looks for a short formula of `tensor_views`. Every kind of cause is a row of `catalogue`, of which docs/causes.md is made; every
number that decides is a row of `thresholds`.
"""
