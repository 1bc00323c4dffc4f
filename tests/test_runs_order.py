"""In which order a capture calls the caller's `run`, and which of these runs is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tracediff as td

torch = pytest.importorskip("torch")

X = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32))


class Counted:
    """A run that keeps in its class what it returned each time: what an object holds is put back before each further run."""

    kept: list[torch.Tensor]

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8)).eval()
        type(self).kept = []

    def __call__(self) -> torch.Tensor:
        with torch.no_grad():
            self.kept.append(self.model(X))
        return self.kept[-1]

    def capture(self, folder: Path, **options: object) -> td.Trace:
        return td.capture(self.model, self, to=folder / "x.h5", **options)

    @property
    def plain(self) -> list[bool]:
        """Of each run, whether nothing was perturbed in it."""
        with torch.no_grad():
            return [kept.dtype == X.dtype and torch.equal(kept, self.model(X)) for kept in self.kept]


def test_the_run_is_recorded_then_measured_for_noise_and_last_repeated_unperturbed_its_operations_noted(tmp_path: Path) -> None:
    run = Counted()
    run.capture(tmp_path).close()
    assert run.plain == [True, *[False] * 3, True]


def test_what_noise_chooses_is_asked_twice_where_the_reference_makes_exact_values_of_real_ones(tmp_path: Path) -> None:
    run = Counted()

    def choosing() -> torch.Tensor:
        return run().argmax(-1)

    td.capture(run.model, choosing, to=tmp_path / "x.h5").close()
    assert run.plain == [True, *[False] * 5, True]


@pytest.mark.parametrize(("options", "plain"), [({"floor": False}, [True, True]), ({"floor": False, "repeat": False}, [True])])
def test_no_run_is_made_that_nobody_asked_for(options: dict[str, object], plain: list[bool], tmp_path: Path) -> None:
    run = Counted()
    run.capture(tmp_path, **options).close()
    assert run.plain == plain


def test_a_model_that_counts_its_runs_has_counted_one_and_has_a_floor(tmp_path: Path) -> None:
    run = Counted()
    run.model.register_buffer("runs", torch.zeros((), dtype=torch.int64))

    def counting() -> torch.Tensor:
        run.model.runs += 1
        return run()

    with td.capture(run.model, counting, to=tmp_path / "x.h5") as trace:
        assert trace.meta["repeats"] is True
        assert trace.floor is not None
    assert run.plain[-1]
    assert run.model.runs == 1
