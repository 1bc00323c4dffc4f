"""The noise floor: what is measured, what cannot be, and how ports in half precision and noise-sensitive ids are judged by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import tracediff as td
from tracediff.dtype import named
from tracediff.errors import CaptureError
from tracediff.metrics import allowed, compare
from tracediff.runs import floor_limits

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402


def rows(trace: td.Trace, site: str, end: str = "output") -> list[int]:
    return [record.row for record in trace.records if (record.site, record.end) == (site, end)]


def seeded(*layers: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(layer() if callable(layer) and not isinstance(layer, nn.Module) else layer for layer in layers)).eval()


def linear(width: int = 8) -> nn.Linear:
    torch.manual_seed(width)
    return nn.Linear(width, width)


X = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)


def reference(model: nn.Module, folder: Path, *dtypes: str, x: Any = X) -> td.Trace:
    with torch.no_grad():
        return td.capture(model, x, to=folder / "ref.h5", floor_dtypes=dtypes or ("float64",))


class OnlyFloat32(nn.Module):
    """Code that asserts its input's dtype, as solvers do, around two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = linear(), linear()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.dtype == torch.float32
        return self.second(torch.tanh(self.first(x)))


class Chooser(nn.Module):
    """Chooses the largest of the values that a layer gives out; two of them are equal to within rounding in the first row."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.embed = nn.Linear(8, 8), nn.Embedding(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.embed(td.tap("chosen", self.score(x).argmax(-1)))


def chooser(tie: float) -> Chooser:
    """A chooser whose first row has two scores that differ by ``tie``, its others clear winners."""
    model = Chooser().eval()
    with torch.no_grad():
        model.embed.weight.copy_(torch.eye(8))
        model.score.weight.copy_(torch.eye(8))
        model.score.bias.zero_()
    model.rows = np.eye(8, dtype=np.float32)[[1, 3, 5, 7]]
    model.rows[0, 4] = 1 + tie
    return model


class TestMeasuring:
    def test_every_dtype_asked_for_has_a_column_and_the_others_are_empty(self, tmp_path: Path) -> None:
        with reference(seeded(linear, nn.GELU, linear), tmp_path, "float64", "bfloat16") as trace:
            assert trace.floor is not None
            assert floor_limits.measured_dtypes(trace.floor) == ["float64", "bfloat16"]
            assert np.isfinite(trace.floor["bfloat16"]).all()
            assert np.isnan(trace.floor["float16"]).all()
            assert 2**-12 < trace.floor["bfloat16"].max() < 2**-5

    def test_what_a_free_run_in_half_precision_errs_by_is_measured_as_such(self, tmp_path: Path) -> None:
        model = seeded(*[linear, nn.Tanh] * 12)
        with reference(model, tmp_path, "float64", "bfloat16") as trace, torch.no_grad():
            [row] = rows(trace, "23")
            assert trace.floor_free is not None
            assert trace.floor is not None
            own = compare(trace.records[row].read(), model.bfloat16()(torch.tensor(X).bfloat16()).float().numpy()).rel_l2
            assert 0.5 * own < trace.floor_free["bfloat16"][row] < 6 * own
            assert trace.floor_free["bfloat16"][row] < 0.5 * trace.floor["free"][row] * named("bfloat16").roundoff
            assert np.isnan(trace.floor_free["float16"]).all()

    def test_a_dtype_without_a_column_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(CaptureError, match=r"no floor in 'int8'.*float64, float16, bfloat16"):
            reference(seeded(linear), tmp_path, "int8")

    def test_code_that_asserts_its_dtype_keeps_it_and_all_that_it_calls_is_measured_in_the_other(self, tmp_path: Path) -> None:
        with reference(nn.Sequential(OnlyFloat32(), linear()).eval(), tmp_path, "float64", "bfloat16") as trace:
            assert trace.floor is not None
            for site in ("0.first", "0.second", "1"):
                assert trace.floor["bfloat16"][rows(trace, site)[0]] > 2**-12, site
            assert any(text.startswith("floor in bfloat16: the code of 0 itself ran in its own dtype") for text in trace.meta["not_seen"])

    def test_what_runs_in_no_way_is_said_and_the_rest_is_measured(self, tmp_path: Path) -> None:
        class Never(nn.Module):
            """Fails as soon as a weight that is not its own is in another dtype."""

            def __init__(self) -> None:
                super().__init__()
                self.inner = linear()

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                if self.inner.weight.dtype != torch.float32:
                    raise RuntimeError("weights in float32 only")
                return x + 1

        with reference(nn.Sequential(linear(), Never(), linear()).eval(), tmp_path, "bfloat16") as trace:
            assert trace.floor is not None
            assert np.isfinite(trace.floor["bfloat16"][rows(trace, "2")]).all()
            assert any("not measured at 1 (RuntimeError: weights in float32 only)" in text for text in trace.meta["not_seen"])

    def test_code_outside_of_every_call_keeps_its_dtype_and_what_it_calls_is_measured_in_the_other(self, tmp_path: Path) -> None:
        model, constant = nn.Sequential(linear(), linear()).eval(), torch.ones(8, 8)

        def run() -> torch.Tensor:
            first = td.tap("first", model[0](torch.from_numpy(X)).tanh())
            return model[1](td.tap("second", first @ constant))

        with torch.no_grad(), td.capture(model, run, to=tmp_path / "ref.h5", floor_dtypes=("float64",)) as trace:
            assert trace.floor is not None
            assert trace.floor["float64"][rows(trace, "1")[0]] > 0
            assert trace.floor["float64"][rows(trace, "#first", "value")[0]] > 0, "what was measured before the failure counts"
            assert next(text for text in trace.meta["not_seen"] if "expected" in text).startswith(
                "floor in float64: the code of the root itself ran in its own dtype, since in this one: RuntimeError"
            )

    def test_a_module_of_which_another_method_runs_keeps_its_own_parameters(self, tmp_path: Path) -> None:
        class Ears(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = linear()
                self.register_buffer("filters", torch.ones(8, 8))

            def listen(self, wave: np.ndarray) -> torch.Tensor:
                return self.inner(torch.from_numpy(wave).float() @ self.filters)

        model = nn.Sequential(Ears(), linear()).eval()
        with torch.no_grad(), td.capture(model, lambda: model[1](model[0].listen(X)), to=tmp_path / "ref.h5") as trace:
            assert trace.floor is not None
            for site in ("0.inner", "1"):
                assert trace.floor["float64"][rows(trace, site)[0]] > 0, site
            assert any("the code of 0 itself ran in its own dtype" in text for text in trace.meta["not_seen"])

    @pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
    def test_a_tap_of_numpys_arrays_hands_on_an_array_in_every_dtype(self, tmp_path: Path, dtype: str) -> None:
        class Seen:  # what a list held is put back before each further run
            dtypes: ClassVar[set[str]] = set()

        def run() -> torch.Tensor:
            wave = td.tap("wave", X)
            assert isinstance(wave, np.ndarray)
            Seen.dtypes.add(str(wave.dtype))
            return model(torch.from_numpy(np.exp(wave).astype(np.float32)))

        model = linear()
        with torch.no_grad(), td.capture(model, run, to=tmp_path / "ref.h5", floor_dtypes=(dtype,)) as trace:
            assert not [text for text in trace.meta["not_seen"] if text.startswith("floor")]
        assert ("float64" in Seen.dtypes) == (dtype == "float64")

    def test_weights_of_modules_that_are_not_called_are_in_the_other_dtype_too(self, tmp_path: Path) -> None:
        class Tied(nn.Module):
            """Takes the weights of a module that it never calls, and of one that is called elsewhere."""

            def __init__(self, other: nn.Linear) -> None:
                super().__init__()
                self.inner, self.other = linear(), [other]

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return nn.functional.linear(nn.functional.linear(x, self.inner.weight), self.other[0].weight)

        first = linear()
        attention = nn.MultiheadAttention(8, 2, batch_first=True)
        for number, model in enumerate((nn.Sequential(first, Tied(first)), attention)):
            folder = tmp_path / str(number)
            folder.mkdir()
            inputs = torch.from_numpy(X)[None]
            with torch.no_grad(), td.capture(model.eval(), (inputs,) * (1 + 2 * number), to=folder / "ref.h5") as trace:
                assert trace.floor is not None
                assert not [text for text in trace.meta["not_seen"] if text.startswith("floor")]
                outputs = rows(trace, "1" if number == 0 else "", "output" if number == 0 else "output[0]")
                assert (trace.floor["float64"][outputs] > 0).all()

    def test_only_one_modules_weights_are_held_in_the_other_dtype_at_a_time(self, tmp_path: Path) -> None:
        wide: list[int] = []

        class Watching(nn.Linear):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                wide.append(sum(layer.weight.dtype == torch.float64 for layer in model))
                return super().forward(x)

        model = nn.Sequential(*(Watching(8, 8) for _ in range(4))).eval()
        with reference(model, tmp_path, "float64") as trace:
            assert trace.floor is not None
            assert (trace.floor["float64"][rows(trace, "3")] > 0).all()
        assert set(wide) == {0, 1}

    def test_a_buffer_that_a_call_changes_is_changed_for_the_next(self, tmp_path: Path) -> None:
        class Kept(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("last", torch.zeros(3, 8))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                before = self.last.clone()
                self.last.copy_(x)
                return before + x * 0.1

        model = nn.Sequential(linear(), Kept(), linear(), linear()).eval()
        model[3] = model[1]
        with reference(model, tmp_path, "float64") as trace:
            assert trace.floor is not None
            assert max(trace.floor["float64"][rows(trace, "1")]) < 2**-20

    def test_a_model_is_bit_for_bit_what_it_was_though_its_run_in_another_dtype_fails(self, tmp_path: Path) -> None:
        model = nn.Sequential(OnlyFloat32(), nn.BatchNorm1d(8), nn.utils.parametrizations.weight_norm(linear())).eval()
        before = {name: (id(value), value.clone(), value.dtype) for name, value in model.state_dict(keep_vars=True).items()}
        reference(model, tmp_path, "float64", "float16", "bfloat16").close()
        after = model.state_dict(keep_vars=True)
        for name, (identity, value, dtype) in before.items():
            assert id(after[name]) == identity
            assert after[name].dtype == dtype
            assert torch.equal(after[name], value)

    def test_a_model_that_its_own_run_changes_is_measured_and_has_run_once(self, tmp_path: Path) -> None:
        class Counter(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                self.calls += 1
                return x * 2

        model = Counter()
        with reference(model, tmp_path, "bfloat16") as trace:
            assert trace.floor is not None
        assert model.calls == 1


class TestNoiseSensitiveIds:
    def capture(self, tmp_path: Path, tie: float, port_rows: np.ndarray | None = None, **options: Any) -> td.Report:
        model = chooser(tie)
        reference(model, tmp_path, x=model.rows).close()
        port = model.rows if port_rows is None else port_rows
        with torch.no_grad():
            td.capture(model, port, to=tmp_path / "port.h5", repeat=False, floor=False, **options).close()
        return td.diff(tmp_path / "ref.h5", tmp_path / "port.h5")

    def flipped(self) -> np.ndarray:
        """The rows with the tie broken the other way."""
        other = chooser(1e-7).rows
        other[0, 1] = 1 + 1e-6
        return other

    def test_the_reference_itself_tells_which_ids_noise_changes(self, tmp_path: Path) -> None:
        for tie, share in ((1e-7, 0.25), (0.1, 0.0)):
            model = chooser(tie)
            folder = tmp_path / str(tie)
            folder.mkdir()
            with reference(model, folder, x=model.rows) as trace:
                row = rows(trace, "!argmax")[0]
                assert trace.floor is not None
                assert trace.floor["noise"][row] == share
                assert bool(trace.floor["sensitive"][row]) is (share > 0)

    @pytest.mark.parametrize("choice", ["hot", "kept"])
    def test_so_it_does_of_real_choices(self, tmp_path: Path, choice: str) -> None:
        model = linear()
        scores = model(torch.from_numpy(X)).detach()
        first, second = scores.sort(-1).values[0, -2:].flip(0)

        def run() -> torch.Tensor:
            values = model(torch.from_numpy(X)) + pushed
            hot = (values == values.amax(-1, keepdim=True)).float()
            return td.tap("hot", hot) if choice == "hot" else td.tap("kept", torch.where(values > cut, values, 0.0))

        for near in (True, False):
            pushed = torch.zeros_like(scores)
            pushed[0, scores[0].argsort()[-2]] = (first - second) * (1 - 1e-7 if near else -1)
            cut = (first - 1e-7) if near else first - 0.5 * (first - second).abs()
            with torch.no_grad(), td.capture(model, run, to=tmp_path / f"{near}.h5") as trace:
                assert trace.floor is not None
                row = rows(trace, f"#{choice}", "value")[0]
                assert bool(trace.floor["sensitive"][row]) is near
                assert bool(trace.floor["noise"][row] * 2**-24 > 0.1) is near

    def test_a_rectifier_is_no_choice(self, tmp_path: Path) -> None:
        model = nn.Sequential(linear(), nn.ReLU(), linear()).eval()
        with reference(model, tmp_path, x=np.random.default_rng(1).standard_normal((4000, 8)).astype(np.float32)) as trace:
            assert trace.floor is not None
            assert not trace.floor["sensitive"].any()
            assert trace.floor["noise"][rows(trace, "1")[0]] < 8

    def test_a_value_that_is_seen_once_more_has_the_floor_of_where_it_was_made(self, tmp_path: Path) -> None:
        model = linear()

        def run() -> torch.Tensor:
            return td.tap("again", td.tap("made", model(torch.from_numpy(X)).exp().cumsum(-1)))

        with torch.no_grad(), td.capture(model, run, to=tmp_path / "ref.h5") as trace:
            assert trace.floor is not None
            made, again = (trace.floor[rows(trace, f"#{name}", "value")[0]] for name in ("made", "again"))
            assert made["noise"] > 0
            assert again["noise"] >= made["noise"]
            assert again["float64"] == made["float64"] > 0

    def test_in_a_free_run_they_are_no_divergence_and_what_follows_gets_no_verdict(self, tmp_path: Path) -> None:
        report = self.capture(tmp_path, 1e-7, self.flipped())
        assert report.divergences == ()
        assert report.verdict is None
        assert [where["reference"] for where in report.certificate["sensitive"]][:1] == ["!argmax"]
        assert {row.effect for row in report.rows if row.diverged} == {"noise"}
        assert "chose different ids where the reference itself would under noise" in str(report)
        assert "Noise-sensitive: !argmax output" in str(report)

    def test_ids_that_noise_does_not_change_stay_exact(self, tmp_path: Path) -> None:
        other = chooser(0.1).rows
        other[0, 1] = 1.2
        report = self.capture(tmp_path, 0.1, other)
        assert report.verdict == "different"
        assert report.certificate["sensitive"] == []

    def test_more_ids_than_noise_explains_are_a_divergence(self) -> None:
        ids = named("int64")
        for differing, diverged in ((1, False), (5, False), (6, True)):
            port = np.arange(100)
            port[:differing] += 1
            judgement = allowed(compare(np.arange(100), port), ids, ids, floor=0.01)
            assert (judgement.by, judgement.diverged) == ("sensitive", diverged)
        assert allowed(compare(np.arange(100), np.arange(100)), ids, ids, floor=0.0).by == "exact"

    def test_a_forced_run_goes_on_with_the_references_ids_and_is_the_same(self, tmp_path: Path) -> None:
        model, port = chooser(1e-7), chooser(1e-7).to(torch.bfloat16)  # in which the two scores are equal
        reference(model, tmp_path, "float64", "bfloat16", x=model.rows).close()
        with torch.no_grad():
            inputs = (torch.from_numpy(model.rows).to(torch.bfloat16),)
            td.capture(port, inputs, to=tmp_path / "port.h5", feed=tmp_path / "ref.h5").close()
        report = td.diff(tmp_path / "ref.h5", tmp_path / "port.h5")
        assert report.verdict == "same", str(report)
        assert [where["reference"] for where in report.certificate["sensitive"]] == ["!argmax"]


class TestHalfPrecision:
    def port(self, tmp_path: Path, *dtypes: str, change: Any = None, **options: Any) -> td.Report:
        def model() -> nn.Module:
            return seeded(linear, nn.GELU, linear, nn.LayerNorm(8), linear)

        reference(model(), tmp_path, *dtypes).close()
        port = model()
        if change is not None:
            change(port)
        with torch.no_grad():
            port = port.to(torch.bfloat16)
            inputs = torch.from_numpy(X).to(torch.bfloat16)
            td.capture(port, (inputs,), to=tmp_path / "port.h5", repeat=False, floor=False, **options).close()
        return td.diff(tmp_path / "ref.h5", tmp_path / "port.h5")

    @pytest.mark.parametrize("feed", [False, True])
    def test_a_clean_port_is_the_same_by_its_own_column(self, tmp_path: Path, feed: bool) -> None:
        report = self.port(tmp_path, "float64", "bfloat16", **({"feed": tmp_path / "ref.h5"} if feed else {}))
        assert report.verdict == "same", str(report)
        assert {row.by for row in report.rows} == {"floor"}
        assert not any("calibrate" in note for note in report.certificate["notes"])

    def test_a_fault_is_found_in_half_precision_where_the_run_is_forced(self, tmp_path: Path) -> None:
        def drop(model: nn.Module) -> None:
            model[2].bias.data.zero_()

        report = self.port(tmp_path, "float64", "bfloat16", change=drop, feed=tmp_path / "ref.h5")
        assert [one.culprit.port for one in report.divergences] == ["2"]

    def test_without_its_column_the_report_says_so_and_what_to_do(self, tmp_path: Path) -> None:
        report = self.port(tmp_path, "float64", feed=tmp_path / "ref.h5")
        assert "noise floor in bfloat16 was not measured" in str(report)
        assert "--dtype bfloat16" in str(report)
        assert any("calibrate" in note for note in report.to_dict()["certificate"]["notes"])

    def test_a_free_run_says_that_it_hides_small_faults(self, tmp_path: Path) -> None:
        assert "free run in bfloat16" in str(self.port(tmp_path, "float64", "bfloat16"))

    def test_a_stage_that_stays_in_float32_is_judged_as_float32(self, tmp_path: Path) -> None:
        first, second = linear(), linear(6)

        def run(dtype: torch.dtype) -> Any:
            def stages() -> None:
                with td.stage("half"):
                    first(torch.from_numpy(X).to(dtype))
                with td.stage("single"):
                    second(torch.from_numpy(X[:, :6].copy()))

            return stages

        with torch.no_grad():
            td.capture((first, second), run(torch.float32), to=tmp_path / "ref.h5", floor_dtypes=("float64", "bfloat16")).close()
            first.to(torch.bfloat16)
            second.weight.data *= 1 + 1e-4
            td.capture((first, second), run(torch.bfloat16), to=tmp_path / "port.h5", repeat=False, floor=False).close()
        with td.open_trace(tmp_path / "port.h5") as port:
            assert floor_limits.port_dtypes(port) == {"half": "bfloat16", "single": "float32"}
        report = td.diff(tmp_path / "ref.h5", tmp_path / "port.h5")
        assert [(one.site.stage, one.culprit.port) for one in report.divergences] == [("single", "1")]


class TestForcedRunsOfCleanPorts:
    def test_a_scale_applied_inside_on_one_side_and_outside_on_the_other_is_not_applied_twice(self, tmp_path: Path) -> None:
        class Inside(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return 4.0 * (x @ self.weight)

        class Outside(Inside):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x @ self.weight

        class Model(nn.Module):
            def __init__(self, kind: type[nn.Module], scale: float) -> None:
                super().__init__()
                self.embed, self.block, self.scale = kind(), linear(), scale

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.block(self.embed(x) * self.scale if self.scale != 1 else self.embed(x))

        reference(Model(Inside, 1.0), tmp_path).close()
        with torch.no_grad():
            td.capture(Model(Outside, 4.0), X, to=tmp_path / "port.h5", feed=tmp_path / "ref.h5").close()
        report = td.diff(tmp_path / "ref.h5", tmp_path / "port.h5")
        assert report.verdict == "same", str(report)
        assert [where["reference"] for where in report.certificate["moved"]] == ["embed"]
