"""The numbers that decide where two runs first part."""

from __future__ import annotations

from dataclasses import dataclass

from tracediff.thresholds import threshold

_SEARCH = "set by hand; benchmarks/bisection.py shows what is read, tests/test_locate.py guards what is found"
_ESTIMATE = "set by hand; tests/test_locate_estimates.py and tests/test_locate.py guard it"
_EFFECT = "set by hand; tests/test_locate.py guards it"
_WORK = "set by hand; a pair takes about a millisecond and 1 ns a byte, tests/test_workers.py guards what comes of it"
_REPLAY = "set by hand; tests/test_equivalent_forms.py guards what comes of it (a factor in code)"
_GRADES = "benchmarks/grades.py on 55 pairs, chosen on 13 of them: 327 of 327 weak faults above twice what is allowed stay clear"
_LIKE = (
    "planted faults, forced: 28 of 28 that are at all siblings of a role stay whole, 7 % of 707 pairs of different faults at siblings are "
    "taken for one; with 0.3 and 0.3 25 of 28 and 5 %, with 1.0 and 1.0 28 of 28 and 26 %"
)
_LIKE_CALLS = "planted faults, forced: the errors of one fault at 208 pairs of calls of one site differ by 0.93 decades at most"
_CODES = "set by hand; tests/test_quantised.py guards it (a factor beside the codes)"
_ALONE = "set by hand, never measured alone"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What counts as proved, expected, alike, and how much is read for it."""

    # what statistics prove, and let expect
    statistics_rounding: float = threshold(1e-9, "share of a norm that the statistics' own rounding may amount to, generously", _ALONE)
    bound_margin: float = threshold(1.001, "by how much a bound from statistics must exceed the limit to prove a divergence", _ALONE)
    far_beyond: float = threshold(4.0, "times what is allowed: a pair expected to be this far off is read before any other", _SEARCH)
    well_below: float = threshold(0.5, "share of what is allowed: an error expected below it is taken to be allowed", _ESTIMATE)
    well_below_by_sample_alone: float = threshold(0.25, "as well_below, where statistics tell nothing and only a sample does", _ESTIMATE)
    telling_sample: int = threshold(16, "values of a sample that tell an error spread over a tensor to within a half", _ESTIMATE)
    most_sampled_values: int = threshold(64, "values of either tensor in a sample, at most", _ESTIMATE)
    most_sampled_share: float = threshold(
        1 / 32, "share of a tensor in a sample, at most: a sample is no reading by another name", _ESTIMATE
    )
    most_joined_values: int = threshold(1 << 22, "values of joined tensors that may be sampled: the place of each is worked out", _ALONE)

    # what is judged, and what is no divergence
    may_be_rounding: float = threshold(1e-2, "RMS from which on a tensor is never the mere rounding of what arrived", _ALONE)
    noise_passed_on: int = threshold(64, "rows before a record in which the unpaired outputs that it was made of are looked for", _ALONE)
    mere_factor: float = threshold(1e-6, "1 - cosine below which two outputs differ by a mere factor", _EFFECT)

    # which differences nothing follows from
    left_of_affine: float = threshold(
        0.1,
        "share of a difference's norm left by a gain and an offset, below which a normalisation may hide it",
        "faults that a norm hides leave less than 5e-5, permutations and padding 0.45 or more (golden pairs and rebuilt reports, free)",
    )
    same_weights: float = threshold(
        1e-4, "relative difference of the norms of two modules' parameters, up to which these are of one size", _EFFECT
    )
    same_weights_roundings: float = threshold(
        4.0, "roundings of the coarsest parameter by which such norms, and one norm times a measured gain, may differ", _EFFECT
    )
    clearly_shown: float = threshold(
        4.0,
        "times the error of what an absorber returned that a random error must leave there, so that an acquittal has power",
        "bfloat16, forced: two planted faults that were acquitted left errors that a random one exceeded 1.4 and 1.6 times, "
        "clean forms of three pairs such that it exceeded 22 times at least",
    )
    leaves_more: float = threshold(
        2.0,
        "times the error of a forced run that a difference must leave behind it to be no form: with the reference's tensor less is left",
        "bfloat16 and float32: two planted faults that free runs acquitted leave 6 times and more, clean forms of five kinds 1.2 at most",
    )
    leaves_more_of_allowed: float = threshold(
        0.5,
        "share of what is allowed, two to three times the noise floor, up to which nothing counts as left behind",
        "float32: rotations from another position and keys in ring order, two clean public reports, leave 0.42 at most",
    )
    most_replayed: int = threshold(600, "of more operations none is computed again with what differs", _REPLAY)
    replayed_values: int = threshold(2**25, "values of all tensors that are held for it, at most: 256 MB", _REPLAY)
    most_ordered: int = threshold(2048, "channels whose order is told by assignment, at most: a second's work", _ALONE)
    fewest_affine_values: int = threshold(4, "values of a row from which a gain and an offset can be told", _ALONE)

    gain_of_quantisation: float = threshold(
        0.4, "correlation of an error with the reference's values up to which it may be that of codes: a gain leaves 0.9 of it", _CODES
    )
    gain_by_chance: float = threshold(4.0, "correlation that few values may have by chance, times the root of their number", _CODES)

    # which divergences are borderline
    borderline: float = threshold(2.5, "times what is allowed up to which an error may be borderline", _GRADES)
    left_of_structure: float = threshold(0.3, "share of an error that gains and offsets leave, up to which it has a structure", _GRADES)

    # how much the search reads
    probes: int = threshold(16, "pairs before the answer that are probed, unless the caller asks for another number", _SEARCH)
    few_doubtful: int = threshold(4, "doubtful pairs that are read one by one rather than halved, at least", _SEARCH)
    few_doubtful_one_in: int = threshold(64, "pairs of a run for each doubtful pair that is read one by one", _SEARCH)
    samples: int = threshold(256, "pairs before the answer at which a sample is looked at", _SEARCH)
    samples_nearest: int = threshold(32, "pairs just before the answer at which a sample is looked at in any case", _SEARCH)
    sampled_one_in: int = threshold(64, "pairs that a sample can tell of for each that is read all the same", _SEARCH)
    silent_one_in: int = threshold(8, "pairs that no sample can tell of for each that is read", _SEARCH)
    rare: float = threshold(0.01, "share of diverged pairs for which the certificate gives the chance that probes miss them all", _ALONE)

    # what workers are handed
    task_bytes: int = threshold(32 * 2**20, "bytes of a task that a worker is handed, from which on no further pair goes into it", _WORK)
    task_pairs: int = threshold(64, "pairs of a task at most", _WORK)
    worker_tries: int = threshold(3, "times a task is begun whose workers die before it is given up", _WORK)

    # which findings are one
    most_error_bytes: int = threshold(1 << 26, "bytes of a tensor whose error is looked at value by value, at most", _ALONE)
    fewest_error_values: int = threshold(16, "values of an error that can be likened to another, at least", _EFFECT)
    alike: float = threshold(0.25, "cosine from which on two errors of one call's code are taken for one", _EFFECT)
    alike_by_chance: float = threshold(8.0, "cosine that two unlike errors may have by chance, times the root of their values", _ALONE)
    far_worse: float = threshold(
        1.5, "decades by which a later error of the same code must be greater to be a finding of its own", _LIKE_CALLS
    )
    gap_of_size: float = threshold(0.5, "decades between the errors of two siblings that are taken for one fault, at most", _LIKE)
    gap_of_direction: float = threshold(0.5, "by how much the cosines of two such errors with gain or offset may differ", _LIKE)
    errors_kept: int = threshold(8, "errors that are kept once they are read value by value", _ALONE)
    couple: int = threshold(2, "siblings that may go wrong together by chance", _EFFECT)
    most_suspects: int = threshold(6, "unpaired sites and missing calls that a finding names, at most", _ALONE)


THRESHOLDS = Thresholds()
