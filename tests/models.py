"""Toy models with one trait each, written once for PyTorch and MLX: the same names, attributes and arithmetic on both sides."""

# ruff: noqa: PLW0108  (functions are looked up when they are called, as models do it)
from __future__ import annotations

import dataclasses
from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tracediff as td

Pair = namedtuple("Pair", "first second")


@dataclasses.dataclass
class Result:
    hidden: Any
    extras: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Frozen:
    hidden: Any


def torch_side() -> SimpleNamespace:
    """The toy models in PyTorch, with the few operations that tests need."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional

    def numpy(tensor: Any) -> np.ndarray[Any, Any]:
        return np.array(tensor.detach().numpy())

    def add_in_place(x: Any, value: float) -> Any:
        x += value
        return x

    side = SimpleNamespace(
        name="torch",
        nn=torch.nn,
        Module=torch.nn.Module,
        array=lambda values: torch.from_numpy(np.array(values)),
        numpy=numpy,
        tanh=torch.tanh,
        softmax=lambda x: functional.softmax(x, dim=-1),
        attention=lambda q, k, v, mask=None: functional.scaled_dot_product_attention(q, k, v, attn_mask=mask),
        normal=lambda *shape: torch.randn(*shape),
        uniform=lambda low, high, shape: torch.empty(shape).uniform_(low, high),
        categorical=lambda logits: torch.multinomial(functional.softmax(logits, dim=-1), 1),
        seed=torch.manual_seed,
        add_in_place=add_in_place,
        set_item=lambda x, index, value: x.__setitem__(index, value),
        call_name="forward",
    )
    return _with_models(side)


def mlx_side() -> SimpleNamespace:
    """The toy models in MLX, with the few operations that tests need."""
    mx = pytest.importorskip("mlx.core")
    nn = pytest.importorskip("mlx.nn")

    class Module(nn.Module):  # type: ignore[misc, name-defined]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.forward(*args, **kwargs)

    def add_in_place(x: Any, value: float) -> Any:
        x += value
        return x

    side = SimpleNamespace(
        name="mlx",
        nn=nn,
        Module=Module,
        array=mx.array,
        numpy=lambda tensor: np.array(tensor),
        tanh=mx.tanh,
        softmax=lambda x: mx.softmax(x, axis=-1),
        attention=lambda q, k, v, mask=None: mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask),
        normal=lambda *shape: mx.random.normal(shape),
        uniform=lambda low, high, shape: mx.random.uniform(low, high, shape),
        categorical=lambda logits: mx.random.categorical(logits),
        seed=mx.random.seed,
        add_in_place=add_in_place,
        set_item=lambda x, index, value: x.__setitem__(index, value),
        call_name="__call__",
    )
    return _with_models(side)


def _with_models(side: SimpleNamespace) -> SimpleNamespace:
    nn, base = side.nn, side.Module

    class Block(base):
        """A layer and a residual."""

        def __init__(self, width: int = 4) -> None:
            super().__init__()
            self.lin = nn.Linear(width, width)
            self.eps = 1e-3
            self._slope = 0.25
            self.sizes = (2, 3)

        def forward(self, x: Any, gain: Any = None) -> Any:
            y = side.tanh(self.lin(x))
            return x + (y if gain is None else y * gain)

    class Net(base):
        """Two blocks, one behind the other."""

        def __init__(self) -> None:
            super().__init__()
            self.first = Block()
            self.second = Block()

        def forward(self, x: Any) -> Any:
            return self.second(td.tap("mid", self.first(x)), gain=x)

        def encode(self, x: Any) -> Any:
            return self.first(x)

        def steps(self, x: Any) -> Any:
            for _ in range(3):
                x = self.first(x)
                yield x

    class Holder(base):
        """Modules in a list, a nested list, a dict, a private attribute, and one under two names."""

        def __init__(self) -> None:
            super().__init__()
            self.blocks = [Block(), [Block()]]
            self.table = {"a": Block(), "b.c/d": Block()}
            self._private = Block()
            self.shared = self._private

        def forward(self, x: Any) -> Any:
            x = self.blocks[1][0](self.blocks[0](x))
            x = self.table["b.c/d"](self.table["a"](x))
            return self.shared(self._private(x))

    class Attention(base):
        """Attention and softmax by function."""

        def __init__(self) -> None:
            super().__init__()
            self.num_heads = 2
            self.to_q = nn.Linear(4, 4)

        def forward(self, x: Any, mask: Any = None) -> Any:
            q, k = self.to_q(x)[None, None], x[None, None]
            return side.softmax(side.attention(q, k, k, mask))

    class Containers(base):
        """Tensors in tuples, lists, dicts and dataclasses, in and out."""

        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, pair: Any, options: Any) -> Any:
            y = self.lin(pair[0]) + options["bias"][0]
            return Result(y, {"pair": Pair(y, pair[1]), "list": [y, None, 3], "frozen": Frozen(y)})

    class Middle(base):
        """Calls `Containers` with arguments that it goes on using."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = Containers()

        def forward(self, x: Any) -> Any:
            options = {"bias": [x]}
            result = self.inner((x, x), options)
            return result.hidden + result.extras["pair"].first + options["bias"][0]

    class Changes(base):
        """Changes its input in place, and returns something else."""

        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            y = self.lin(x)
            side.add_in_place(x, 1.0)
            side.set_item(x, 0, 7.0)
            return y

    class Changed(base):
        """Goes on with what `Changes` did to its input."""

        def __init__(self) -> None:
            super().__init__()
            self.changes = Changes()
            self.after = nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            h = x + 0.0
            y = self.changes(h)
            return self.after(h) + y

    class Draws(base):
        """Draws noise, phases and a token."""

        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            y = self.lin(x) + side.normal(2, 4) + side.uniform(-3.0, 3.0, (2, 4))
            return y, side.categorical(y)

    class Dropping(base):
        """Dropout between two layers."""

        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)
            self.lin = nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            return self.lin(self.drop(x))

    class Failing(base):
        """Raises behind its first block."""

        def __init__(self) -> None:
            super().__init__()
            self.first = Block()
            self.broken = Broken()

        def forward(self, x: Any) -> Any:
            return self.broken(self.first(x))

    class Broken(base):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            raise ValueError("no such axis")

    class Bypassed(base):
        """Is entered by another method than its own call."""

        def __init__(self) -> None:
            super().__init__()
            self.net = Net()
            self.unused = Block()

        def forward(self, x: Any) -> Any:
            return self.net.encode(x)

    for cls in (Block, Net, Holder, Attention, Containers, Middle, Changes, Changed, Draws, Dropping, Failing, Bypassed):
        setattr(side, cls.__name__, cls)
    return side


SIDES = {"torch": torch_side, "mlx": mlx_side}
