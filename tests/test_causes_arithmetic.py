"""The arithmetic of recorded operations: each operation that a call dispatches gives in NumPy what PyTorch gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tracediff.replay.arithmetic import OPERATIONS
from tracediff.replay.resampling import WAYS, taps

torch = pytest.importorskip("torch")
F = torch.nn.functional
CHANCE = torch.Generator().manual_seed(0)


def draw(*shape: int) -> Any:
    return torch.randn(shape, generator=CHANCE)


X, IMAGE = draw(2, 3, 20), draw(2, 3, 7, 10)
GRID = draw(2, 4, 5, 2)
TRIANGLE = draw(2, 5, 5) + 3 * torch.eye(5)
WINDOW = torch.hann_window(16)

CALLS: dict[str, Callable[[], Any]] = {
    **{
        f"images to {size} by {mode}, corners {aligned}, antialias {smooth}": lambda size=size, mode=mode, aligned=aligned, smooth=smooth: (
            F.interpolate(IMAGE, size=size, mode=mode, align_corners=aligned, antialias=smooth)
        )
        for size in ((5, 13), (14, 20), (3, 4))
        for mode in ("bilinear", "bicubic")
        for aligned, smooth in ((False, False), (True, False), (False, True))
    },
    **{
        f"images by {factor}, {mode}": lambda factor=factor, mode=mode: F.interpolate(IMAGE, scale_factor=factor, mode=mode)
        for factor in (2, 1.7, 0.6)
        for mode in ("nearest", "nearest-exact", "bilinear", "bicubic")
    },
    **{
        f"sequences by {factor}, {mode}": lambda factor=factor, mode=mode: F.interpolate(X, scale_factor=factor, mode=mode)
        for factor in (2, 1.3, 0.5)
        for mode in ("nearest", "linear")
    },
    **{
        f"images at coordinates, {mode}, {outside} outside, corners {aligned}": lambda mode=mode, outside=outside, aligned=aligned: (
            F.grid_sample(IMAGE, GRID, mode=mode, padding_mode=outside, align_corners=aligned)
        )
        for mode in ("bilinear", "nearest")
        for outside in ("zeros", "border", "reflection")
        for aligned in (False, True)
    },
    "volumes": lambda: F.interpolate(IMAGE[:, :, None], scale_factor=2, mode="nearest"),
    **{
        f"pools, ceiling {ceil}, padding {pad}": lambda ceil=ceil, pad=pad: [
            F.max_pool2d(IMAGE, 3, 2, pad, ceil_mode=ceil),
            F.avg_pool2d(IMAGE, 3, 2, pad, ceil_mode=ceil),
            F.avg_pool2d(IMAGE, 3, 2, pad, ceil_mode=ceil, count_include_pad=False),
            F.avg_pool1d(X, 3, 2, pad, ceil_mode=ceil),
        ]
        for ceil in (True, False)
        for pad in (0, 1)
    },
    "adaptive pools": lambda: F.adaptive_avg_pool2d(IMAGE, (3, 4)),
    "patches": lambda: F.unfold(IMAGE, (3, 2), dilation=(1, 2), padding=(1, 0), stride=(2, 1)),
    "counts": lambda: torch.histc(torch.tensor([0.0, 1, 1, 3, 4]), bins=5, min=0, max=4),
    "groups of rows": lambda: torch._grouped_mm(draw(16, 8), draw(3, 8, 16), offs=torch.tensor([4, 4, 16], dtype=torch.int32)),
    "triangular matrices": lambda: torch.linalg.solve_triangular(TRIANGLE, draw(2, 5, 4), upper=False),
    "triangular matrices from the right": lambda: torch.linalg.solve_triangular(
        TRIANGLE, draw(2, 4, 5), upper=False, left=False, unitriangular=True
    ),
    "weight norm": lambda: [
        torch._weight_norm(draw(4, 3, 5), torch.ones(4, 1, 1)),
        torch._weight_norm(draw(4, 3, 5), torch.ones(1, 1, 5), 2),
    ],
    "extremes": lambda: [*torch.aminmax(X, dim=2), *torch.aminmax(X)],
    "places where something holds": lambda: torch.nonzero(X > 1),
    "values put where something holds": lambda: X.masked_scatter(X > 0, draw(120)),
    "scattered maxima": lambda: torch.zeros(3, 4).scatter_reduce(0, torch.tensor([[0, 1, 1, 2], [0, 0, 1, 2]]), draw(2, 4), "amax"),
    "spectra": lambda: [torch.fft.fft(X).real, torch.fft.ifft(torch.fft.fft(X)).real, torch.fft.irfft(torch.fft.rfft(X, norm="ortho"), 9)],
    "a spectrum and back": lambda: torch.istft(torch.stft(X[0], 16, 4, window=WINDOW, return_complex=True), 16, 4, window=WINDOW),
}


def _array(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        made = value.numpy()
        return made.astype({"f": np.float64, "c": np.complex128}.get(made.dtype.kind, made.dtype))
    if isinstance(value, (list, tuple)):
        return [_array(one) for one in value]
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value


class _Compared(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[misc]
    """Computes each operation a second time, in NumPy."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong: list[str] = []
        self.compared = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name in OPERATIONS and not name.startswith(("empty", "new_empty")):
            named = {key: _array(value) for key, value in kwargs.items() if key not in ("device", "layout", "pin_memory", "memory_format")}
            ours = OPERATIONS[name](*map(_array, args), **named)
            pairs = zip(made if isinstance(made, (tuple, list)) else [made], ours if isinstance(ours, tuple) else [ours], strict=True)
            self.wrong += [name for theirs, one in pairs if one is not None and not np.allclose(_array(theirs), one, rtol=1e-4, atol=2e-5)]
            self.compared += 1
        return made


@pytest.mark.parametrize("name", CALLS)
def test_each_operation_gives_what_pytorch_gives(name: str) -> None:
    with _Compared() as compared:
        CALLS[name]()
    assert compared.compared
    assert compared.wrong == []


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("length", [1, 4, 7, 19])
def test_resampling_keeps_what_is_constant(way: Any, length: int) -> None:
    assert np.allclose(taps(7, length, way)[1].sum(1), 1)
