"""Pairs a port that arrives as a file of arrays, under names of its own, with the reference's tensors.

Such a port has no calls and no data flow: only arrays with names, shapes and values. Contents are paired, not sites: `contents` finds them,
`agreement` says what values say in every order of axes, `wording` what names say, `assignment` decides, `effects` drops what resembles by
shape alone, `rows` chooses the record, `readings` the order of axes. What names or a mapping state comes first (`stated`).
"""

from __future__ import annotations

from tracediff.alignment.array_files.pairs import align_arrays, is_array_file

__all__ = ["align_arrays", "is_array_file"]
