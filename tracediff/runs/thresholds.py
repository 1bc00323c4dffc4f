"""The numbers that decide in `tracediff.runs`: `THRESHOLDS`."""

from __future__ import annotations

from dataclasses import dataclass

from tracediff.thresholds import threshold


@dataclass(frozen=True)
class RunThresholds:
    """What bounds the work of runs, and what their measurements count as."""

    noise_of_all: float = threshold(
        1.33,
        "size of the noise that all values of a tensor share, in units of roundoff, beside the normal noise of each",
        "the mean of the largest of three normal numbers; three runs that each drew one made floors that spread by 2 either way",
    )
    sensitive_units: float = threshold(
        8.0,
        "units of roundoff: ids and other choices that the reference changes under so much noise are noise-sensitive",
        "set by hand; tests/test_runs_floor.py guards it (TestNoiseSensitiveIds)",
    )
    beyond_noise: float = threshold(
        16.0,
        "a value that comes or goes and is so many times larger than the noise was chosen, not computed",
        "set by hand; tests/test_runs_floor.py guards it (a rectifier is no choice)",
    )
    operation_units: float = threshold(
        2.0,
        "unit roundoffs by which an elementary operation may be off in another library, and by half of them at least",
        "limits of 18 pairs of benchmarks/faults, float32: 1.0 times those without at the median, 1.3 at nine tenths, 4.6 at most",
    )
    sampled_rows: int = threshold(
        16,
        "rows on which a call of a stateless leaf is measured, where its output has twice as many or more",
        "beside all rows: limits 0.90 to 1.08 times (a Llama, 128 tokens); with 2 rows 0.5 to 1.7, no golden answer of 190 changed",
    )
    sampled_error: float = threshold(
        32.0,
        "unit roundoffs up to which the rows that a leaf gives on some of its rows are the stored ones; else it is called on all",
        "set by hand; tests/test_runs_leaves.py guards it (a leaf whose rows depend on each other)",
    )
    same_statistics: float = threshold(
        1e-6,
        "relative difference of statistics up to which two records hold one tensor, perhaps normalised once more",
        "set by hand; tests/test_runs_floor.py guards it (a value that is seen once more)",
    )
    rounded_at_all: float = threshold(
        1 / 16,
        "unit roundoffs of a half precision below which a tensor of a run in it was not rounded to it",
        "free runs of 17 pairs: 0.2 and more where tensors are rounded, 1e-4 and less where code keeps float32",
    )
    cast_rounds: int = threshold(
        8,
        "runs in another dtype at most, each with what failed before left in the reference's own dtype",
        "set by hand, never measured alone",
    )
    live_bytes: int = threshold(
        256 * 1024 * 1024,
        "bytes of both sides that a live bisection holds at once, unless a single frame needs more",
        "set by hand, never measured alone",
    )
    fitting_output: float = threshold(
        1e-2,
        "relative error of a module's output below which the order of its inputs' axes is taken to be right",
        "set by hand; tests/test_runs_single_site.py guards it (a module of another framework)",
    )


THRESHOLDS = RunThresholds()
