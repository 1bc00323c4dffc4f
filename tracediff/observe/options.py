"""What a capture was asked for: one set of options behind `td.capture`, `td.record`, recipes, runs and the command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self, TypedDict, TypeVar, Unpack, get_args

from tracediff.errors import CaptureError
from tracediff.observe.call_selection import call_test
from tracediff.progress import Progress as Progress
from tracediff.progress import silent as silent
from tracediff.trace.budget import size_of

Save = Literal["full", "stats"]

FLOOR_DTYPES = ("float64", "float16", "bfloat16", "tf32")
"""In what a noise floor can be measured: dtypes, of which float64 serves ports in float32, and float32 whose products are TF32's."""


class _Observing(TypedDict):
    """The options that `tracediff.observe.observe` takes."""

    methods: tuple[str, ...]
    functions: tuple[str, ...]
    impl: str | None
    compile: bool | None


class _AnyRun(TypedDict, total=False):
    include: Iterable[str]
    exclude: Iterable[str]
    calls: str | Iterable[str] | None
    methods: Iterable[str]
    functions: Iterable[str]
    save: Save
    save_params: bool
    budget: int | str | None
    compile: bool | None
    precise: bool | None


class BlockKeywords(_AnyRun, total=False):
    """The options of a ``with`` block, which runs once; `CaptureOptions` says what each means."""

    stages: Iterable[str]
    impl: str | None


class RecipeKeywords(_AnyRun, total=False):
    """The options of a recipe's run, whose stages and framework are the recipe's; `CaptureOptions` says what each means."""

    repeat: bool
    floor: bool | None
    floor_dtypes: Iterable[str]


class CaptureKeywords(BlockKeywords, RecipeKeywords, total=False):
    """All options as a caller may give them; `CaptureOptions` says what each means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureOptions:
    """What is recorded of a run, how it is kept, and what is measured besides. It is plain data and crosses to another Python.

    Every pattern is a glob. `of` takes any iterable of texts where a field is a tuple. Raises CaptureError for a value that makes no sense.

    >>> CaptureOptions.of(calls="0:3").calls
    ('0:3',)
    """

    include: tuple[str, ...] = ()
    """Patterns on sites or module paths: only these are recorded. Empty: all."""
    exclude: tuple[str, ...] = ()
    """Patterns on sites or module paths: these are not recorded, even if included."""
    calls: tuple[str, ...] = ()
    """Which calls of each site are recorded, by number from 0: ``3``, ``0-3`` or ``0:3`` (both ends included), ``7-``; or patterns on the
    printed call (`tracediff.observe.call_selection`). Empty: all."""
    stages: tuple[str, ...] = ()
    """Patterns on stages: only what runs inside such a stage is recorded. Empty: all."""
    methods: tuple[str, ...] = ()
    """Methods to observe besides the modules' own calls, each ``path:method``, such as ``flow:inference``."""
    functions: tuple[str, ...] = ()
    """Patterns on the dotted names of functions to observe that are no modules, such as ``my_package.**``."""
    save: Save = "full"
    """``full`` keeps the values of every record; ``stats`` keeps statistics and digests only."""
    save_params: bool = False
    """Whether the values of parameters are kept too, besides their statistics and digests."""
    budget: int | None = None
    """The bytes that the file may take, as a number or a text such as ``2GB``: where need be tensors are kept as a few values and their
    statistics, those of repeated calls first."""
    repeat: bool = True
    """Whether a free run is made a second time, to see whether it gives the same bits."""
    floor: bool | None = None
    """Whether the noise floor of a free run is measured, in three to five more runs; None: for PyTorch runs on their own inputs."""
    floor_dtypes: tuple[str, ...] = ("float64",)
    """The dtypes of the ports that will be judged by the floor, of `FLOOR_DTYPES`."""
    impl: str | None = None
    """The framework (``torch``, ``mlx``, ``plain``) where models and inputs do not tell it."""
    compile: bool | None = None
    """False turns compilation and fused layers off for the run; True leaves them on; None: off where they would hide observed modules."""
    precise: bool | None = None
    """True takes products of float32 numbers in full precision where the framework lets them be, False as they come; None: in full
    precision where a run is fed by a reference, or is one whose floor is measured."""

    def __post_init__(self) -> None:
        for name in ("include", "exclude", "calls", "stages", "methods", "functions", "floor_dtypes"):
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        if self.save not in get_args(Save):
            raise CaptureError(f"save={self.save!r} is not known; choose one of {', '.join(map(repr, get_args(Save)))}.")
        if self.budget is not None:
            try:
                object.__setattr__(self, "budget", size_of(self.budget))
            except ValueError as error:
                raise CaptureError(f"A budget is a size, and {error}.") from error
        for text in self.calls:
            call_test(text)
        for name in self.floor_dtypes:
            if name not in FLOOR_DTYPES:
                raise CaptureError(f"There is no floor in {name!r}; a floor is measured in {', '.join(FLOOR_DTYPES)}.")

    @classmethod
    def of(cls, **given: Unpack[CaptureKeywords]) -> Self:
        """The options that a caller gave by keyword; TypeError for a keyword that is none of them."""
        return cls(**given)  # type: ignore[arg-type]  # texts become tuples at construction

    def updated(self, given: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """These options with the fields among some keywords in their place, and the other keywords."""
        fields_given = {name: value for name, value in given.items() if name in CaptureKeywords.__annotations__}
        return replace(self, **fields_given), {name: value for name, value in given.items() if name not in fields_given}

    def observing(self) -> _Observing:
        """The keywords of `tracediff.observe.observe`."""
        return {"methods": self.methods, "functions": self.functions, "impl": self.impl, "compile": self.compile}

    def to_json(self) -> dict[str, Any]:
        """The options as plain data, for another Python; `of` takes them back."""
        return asdict(self)


Function = TypeVar("Function", bound=Callable[..., Any])


def lists_options(keywords: type[Any]) -> Callable[[Function], Function]:
    """A decorator: the signature of a function that takes ``**options`` names each of ``keywords`` with its default, for `help`."""
    types = {name: getattr(kind, "__forward_arg__", kind) for name, kind in keywords.__annotations__.items()}

    def decorated(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        listed = [
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=types[field.name])
            for field in fields(CaptureOptions)
            if field.name in types
        ]
        function.__signature__ = signature.replace(parameters=[*own, *listed])  # type: ignore[attr-defined]
        return function

    return decorated


def block_options(given: Mapping[str, Any]) -> CaptureOptions:
    """The options of a ``with`` block. Raises CaptureError for those that would need a second run of it."""
    refused = [name for name in given if name in RecipeKeywords.__annotations__ and name not in BlockKeywords.__annotations__]
    if refused:
        raise CaptureError(f"The code of a block runs once, so {refused[0]!r} does not apply to it; capture a callable, or leave it out.")
    return CaptureOptions.of(**given)


def _texts(name: str, given: str | Iterable[str] | None) -> tuple[str, ...]:
    """The texts of one option as a tuple; of ``calls`` one text will do by itself, and None stands for no text."""
    if given is None:
        return ()
    if isinstance(given, str):
        if name == "calls":
            return (given,)
        raise CaptureError(f"{name} is a list of patterns, not one text; write {name}=[{given!r}].")
    listed: tuple[object, ...] = tuple(given) if isinstance(given, Iterable) else (given,)
    for text in listed:
        if not isinstance(text, str):
            raise CaptureError(f"{name} is a list of texts, and {text!r} is none; write for instance {name}=['{text}'].")
    return tuple(map(str, listed))


DEFAULTS = CaptureOptions()
"""What is recorded where nothing is asked for."""
