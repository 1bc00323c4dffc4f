"""The numbers that decide what a look raises an alarm at."""

from __future__ import annotations

from dataclasses import dataclass

from tracediff.thresholds import threshold

_CLEAN = "set by hand; silent on the recorded traces, on five clean language models and on clean Chatterbox stages (tests/test_look.py)"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """See the module."""

    fewest_values: int = threshold(16, "values that a tensor needs to be called constant, or to be compared with the reference's", _CLEAN)
    same_everywhere: float = threshold(1e-6, "share of the whole spread below which all places along an axis hold the same", _CLEAN)
    fewest_ids: int = threshold(24, "ids in a row from which a loop is looked for", _CLEAN)
    longest_loop: int = threshold(8, "ids that a loop repeats at most", _CLEAN)
    looping: float = threshold(0.5, "share of the ids that a loop at the end takes", _CLEAN)
    fewest_rounds: int = threshold(6, "times that a loop goes round", _CLEAN)
    too_long: float = threshold(3.0, "times the reference's number of ids from which the port's are endless", _CLEAN)
    fewest_samples: int = threshold(2048, "values of a signal that is looked at for a tone", _CLEAN)
    tone: float = threshold(0.9, "share of a signal's energy in one narrow band from which it is a tone", "the port it comes from had 0.98")
    band: float = threshold(0.005, "half the width of that band, as a share of the sampling rate", "set by hand: 120 Hz at 24 kHz")
    fewest_steps: int = threshold(4, "steps of a loop whose norms are looked at", _CLEAN)
    growth: float = threshold(8.0, "times the first step's norm from which a loop that grows at every step runs away", _CLEAN)
    steady: float = threshold(0.7, "share of the mean growth that the last steps keep where growth does not fade", _CLEAN)
    signs: float = threshold(0.5, "difference of mean over mean size, from -1 (all negative) to 1, that is unlike the reference", _CLEAN)
    spread: float = threshold(4.0, "times the reference's standard deviation, or its inverse, that is unlike it", _CLEAN)
    reach: float = threshold(16.0, "times the reference's largest size, or its inverse, that is unlike it", _CLEAN)


THRESHOLDS = Thresholds()
