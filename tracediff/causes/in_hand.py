"""A tensor that the code had in hand when it made the divergent one."""

from __future__ import annotations

from dataclasses import dataclass

from tracediff.dtype import Array


@dataclass(frozen=True, slots=True)
class InHand:
    """A tensor that the code had in hand when it made the divergent one: the reference's values, float64.

    ``name`` is what people read, ``end`` the record's end, ``type`` the class name of the module that made it. ``is_input``: whether the
    code was handed the tensor (rather than got it from a call that the code made). ``dtypes``: the tensor's on either side. ``calls``:
    how often the code calls the module that made it. ``is_taken``: whether a later call that the code made was handed the tensor.
    """

    name: str
    end: str
    type: str
    is_input: bool
    values: Array
    dtypes: tuple[str, str] = ("", "")
    calls: int = 1
    is_taken: bool = False

    @property
    def is_stream(self) -> bool:
        """Whether something is added to it, rather than it to something: it was handed in, or a later call was made from it."""
        return self.is_input or self.is_taken

    def kind_if_left_out(self, *, is_stream: bool) -> str:
        """The kind of cause that it is not to add this tensor; ``is_stream``: whether the code added something else to it."""
        words = (self.type + self.name).lower()
        if any(word in words for word in ("posit", "pos_")) or ("embed" in words and not is_stream):
            return "position.missing"
        return "residual.missing" if is_stream else "branch.missing"
