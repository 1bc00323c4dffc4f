"""Wrong code planted in a real port is named: the culprit, the one divergence that it makes, and the likely cause."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
mx = pytest.importorskip("mlx.core")
nn = pytest.importorskip("mlx.nn")

import pairs  # noqa: E402

import tracediff as td  # noqa: E402

Plant = Callable[[Any], None]


def rewritten(module: Any, call: Callable[..., Any]) -> None:
    """Exchanges the code of one instance."""
    kind = type(module)
    module.__class__ = type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})


def attends(change: Callable[..., Any]) -> Callable[..., Any]:
    """An attention whose queries, keys, values and scale go through ``change`` first."""

    def call(self: Any, x: Any, mask: Any) -> Any:
        batch, length, _ = x.shape
        q, k, v = (
            project(x).reshape(batch, length, self.n_heads, -1).transpose(0, 2, 1, 3)
            for project in (self.query_proj, self.key_proj, self.value_proj)
        )
        q, k, v, scale = change(q, k, v, q.shape[-1] ** -0.5)
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
        return self.out_proj(y.transpose(0, 2, 1, 3).reshape(batch, length, -1))

    return call


def embeds(change: Callable[[Any, Any, Any], Any], *, has_mask: bool = True) -> Callable[..., Any]:
    """The whole model with other first lines; ``change`` is given it, the ids and their positions."""

    def call(self: Any, ids: Any) -> Any:
        x = change(self, ids, mx.arange(ids.shape[1]))
        mask = nn.MultiHeadAttention.create_additive_causal_mask(ids.shape[1]) if has_mask else None
        for layer in self.layers:
            x = layer(x, mask)
        return self.token_embedding.as_linear(self.final_norm(x))

    return call


def halves(self: Any, x: Any, mask: Any) -> tuple[Any, Any]:
    attended = x + self.self_attn(self.attn_norm(x), mask)
    return attended, self.feed_forward(self.ffn_norm(attended))


def merged_without_transposing(self: Any, x: Any, mask: Any) -> Any:
    batch, length, _ = x.shape
    q, k, v = (
        project(x).reshape(batch, length, self.n_heads, -1).transpose(0, 2, 1, 3)
        for project in (self.query_proj, self.key_proj, self.value_proj)
    )
    y = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)
    return self.out_proj(y.reshape(batch, length, -1))


def drops(self: Any, x: Any) -> Any:
    kept = mx.random.uniform(shape=(2, 9, 32), key=mx.random.key(3)) > 0.1
    return self.down(nn.gelu(self.up(x))) * kept / 0.9


def no_bias(port: Any) -> None:
    port.layers[2].self_attn.out_proj.bias = mx.zeros(32)


def wide_eps(port: Any) -> None:
    port.layers[1].ffn_norm.eps = 1e-2


def both(self: Any, ids: Any, places: Any) -> Any:
    return self.token_embedding(ids) + self.position_embedding(places)


CASES: dict[str, tuple[Plant, str, str]] = {
    "eps": (wide_eps, "h.1.ln_2", "norm.eps"),
    "bias": (no_bias, "h.2.attn.c_proj", "weights.missing_bias"),
    "residual": (lambda port: rewritten(port.layers[2], lambda self, x, mask: halves(self, x, mask)[1]), "h.2", "residual.missing"),
    "branch": (
        lambda port: rewritten(port.layers[1], lambda self, x, mask: x + self.feed_forward(self.ffn_norm(x))),
        "h.1",
        "branch.missing",
    ),
    "norm": (lambda port: rewritten(port.layers[1].ffn_norm, lambda self, x: x), "h.1.ln_2", "norm.missing"),
    "activation": (
        lambda port: rewritten(port.layers[1].feed_forward, lambda self, x: self.down(nn.silu(self.up(x)))),
        "h.1.mlp.act",
        "activation",
    ),
    "clamp": (
        lambda port: rewritten(port.layers[1].feed_forward, lambda self, x: mx.clip(self.down(nn.gelu(self.up(x))), -1, 1)),
        "h.1",
        "clamp",
    ),
    "dropout": (lambda port: rewritten(port.layers[1].feed_forward, drops), "h.1", "dropout"),
    "scale": (lambda port: rewritten(port.layers[1].self_attn, attends(lambda q, k, v, scale: (q, k, v, 1.0))), "h.1.attn", "scale"),
    "roles": (
        lambda port: rewritten(port.layers[1].self_attn, attends(lambda q, k, v, scale: (k, q, v, scale))),
        "h.1.attn",
        "order.roles",
    ),
    "heads": (lambda port: rewritten(port.layers[1].self_attn, merged_without_transposing), "h.1.attn", "heads.layout"),
    "positions": (lambda port: rewritten(port, embeds(lambda self, ids, places: self.token_embedding(ids))), "", "position.missing"),
    "offset": (lambda port: rewritten(port, embeds(lambda self, ids, places: both(self, ids, places + 1))), "", "position.offset"),
    "mask": (lambda port: rewritten(port, embeds(both, has_mask=False)), "", "mask.missing"),
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpt") / "reference.h5"
    pair = pairs.gpt()
    td.capture(pair.reference, pair.run_reference, to=path)
    return path


@pytest.mark.parametrize("name", CASES)
def test_a_planted_fault_is_one_divergence_with_its_culprit_and_cause(name: str, reference: Path, tmp_path: Path) -> None:
    plant, culprit, kind = CASES[name]
    pair = pairs.gpt()
    plant(pair.port)
    td.capture(pair.port, pair.run_port, to=tmp_path / "port.h5", feed=reference)
    report = td.bisect(reference, tmp_path / "port.h5")
    assert report.first is not None
    assert report.first.culprit.reference == culprit
    assert report.first.causes[0].kind == kind
    assert len(report.divergences) == 1


def test_the_port_as_it_is_has_no_divergence(reference: Path, tmp_path: Path) -> None:
    pair = pairs.gpt()
    td.capture(pair.port, pair.run_port, to=tmp_path / "port.h5", feed=reference)
    assert td.bisect(reference, tmp_path / "port.h5").verdict == "same"
