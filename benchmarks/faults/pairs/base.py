"""What every pair of the benchmark needs: its two models, its inputs, and the weights carried over by the truth's own names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from mlx import nn as mnn
from pairs import Pair, Rules, load, matched
from torch import nn

from benchmarks.faults.catalogue import Edit

Array = np.ndarray


@dataclass(frozen=True)
class WithEdits(Pair):
    """A pair with faults of its own besides those that fit everywhere."""

    edits: tuple[Edit, ...] = ()


def pair(
    name: str,
    reference: nn.Module,
    port: mnn.Module,
    inputs: Sequence[Array],
    truth: Rules,
    *,
    port_inputs: Sequence[Array] | None = None,
    edits: tuple[Edit, ...] = (),
    transposed: Sequence[str] = (),
    more: Mapping[str, Array] | None = None,
    without: Sequence[str] = (),
    fused: Rules | None = None,
) -> WithEdits:
    """The pair, the port's weights being the reference's under the truth's names.

    ``port_inputs``: where the port takes them in another layout. ``transposed``: the beginnings of the reference's names of transposed
    convolutions. ``more``: weights that the truth does not carry over, under the port's names; ``without``: kinds of the reference's
    parameters that it must not.
    """
    load(port, {**carried_over(reference, truth, transposed, without), **(more or {})})
    ours, theirs = [np.asarray(one) for one in inputs], [np.asarray(one) for one in (port_inputs or inputs)]
    return WithEdits(
        name,
        reference,
        port,
        lambda: reference(*(torch.tensor(one) for one in ours)),
        lambda: mx.eval(port(*(mx.array(one) for one in theirs))),
        truth,
        fused or {},
        edits,
    )


def carried_over(reference: nn.Module, truth: Rules, transposed: Sequence[str], without: Sequence[str] = ()) -> dict[str, Array]:
    """The reference's weights under the port's names, convolutions with their channels last.

    What the truth does not know is left out, and what is named in ``without``.
    """
    found: dict[str, Array] = {}
    for name, value in reference.state_dict().items():
        module, _, kind = name.rpartition(".")
        target = matched(truth, module)
        if target is None or kind in ("num_batches_tracked", *without):
            continue
        array = value.detach().numpy()
        if array.ndim >= 3 and kind == "weight":
            is_transposed = any(name.startswith(one) for one in transposed)
            array = np.moveaxis(array, 0, -1) if is_transposed else np.moveaxis(array, 1, -1)
        found[f"{target}.{kind}" if target else kind] = np.ascontiguousarray(array)
    return found


Maker = Callable[[int], Any]
