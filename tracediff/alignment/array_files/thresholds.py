"""Every number that decides how arrays that came as a file are paired with a reference's tensors."""

from __future__ import annotations

from dataclasses import dataclass

from tracediff.thresholds import threshold

_PORTS = "set by hand on the ports of benchmarks/file_ports.py that are not held back"


@dataclass(frozen=True)
class ArrayFileThresholds:
    """The numbers of pairing by contents. A *score* is a sum of what the sources say; an *error* is a relative L2 in some order of axes."""

    samples: int = threshold(2048, "values of a tensor at which contents are compared", _PORTS)
    imaginary: float = threshold(
        0.7, "weight of the imaginary part, so that contents of complex numbers are told by one number", "any but 0 and 1"
    )
    same_run: float = threshold(
        1e-6, "relative error below which two tensors of one run hold the same numbers in some order of axes", _PORTS
    )
    group_bytes: int = threshold(1 << 28, "bytes of the port's tensors of one size that are held at once", "bounds memory only")

    agrees: float = threshold(1e-2, "error up to which values pair two tensors by themselves", _PORTS)
    clearly_nearest: float = threshold(0.2, "the nearest tensor's error must be below this part of the second nearest's", _PORTS)
    digit: float = threshold(1.5, "what each decimal digit in which values agree is worth", _PORTS)
    least_error: float = threshold(1e-6, "an error below this one says no more", _PORTS)
    alike: float = threshold(2.0, "what values are worth that follow one another (correlation 1) without agreeing", _PORTS)
    alike_deviations: float = threshold(6.0, "deviations from chance that a correlation needs to count", _PORTS)
    unlike: float = threshold(0.5, "against values of which neither follows the other: most faults leave something of a tensor", _PORTS)
    per_value: float = threshold(0.5, "the most that each value of a small tensor is worth", _PORTS)

    fits: float = threshold(0.5, "two tensors of which some order of axes reads one as the other", _PORTS)
    words: float = threshold(3.0, "names of the same words", _PORTS)
    numbers: float = threshold(1.0, "names with the same numbers, by rank; minus that where they differ", _PORTS)
    number_alone: float = threshold(0.3, "the part that numbers count for where no word is alike", _PORTS)
    fewer_numbers: float = threshold(0.3, "names of which one has fewer numbers, in the same order", _PORTS)
    common_word: float = threshold(0.1, "what a word weighs that all names of a side have", _PORTS)
    siblings: float = threshold(4.0, "what it is worth to pair as the numbered siblings of both names do", _PORTS)
    scope: float = threshold(3.0, "to stand in the module that holds what else stands beside the array, as names of the same words", _PORTS)
    sibling_votes: int = threshold(2, "siblings that must be paired by values to have a say", _PORTS)
    other_name: float = threshold(1.0, "by how much a name must say more of another tensor than of its own", _PORTS)
    habit: float = threshold(
        1.0, "that the port holds all siblings of a tensor, or all of its kind; minus that where it holds none", _PORTS
    )
    in_step: float = threshold(1.0, "to follow and precede what the neighbours in the file are", _PORTS)
    sibling_share: float = threshold(0.75, "share of the paired siblings of a name that must pair alike for them to have a say", _PORTS)
    returned: float = threshold(1.0, "what the reference returned: most ports store it", _PORTS)
    only_left: float = threshold(1.0, "and nothing else that is left on either side has its shape", _PORTS)
    in_place: float = threshold(0.6, "to lie between the same neighbours in the order of execution", _PORTS)
    out_of_place: float = threshold(1.5, "against lying before a neighbour that comes earlier", _PORTS)
    worth_pairing: float = threshold(
        2.5,
        "the least score of a pair whose values do not agree",
        "1,139 such pairs of 120 faulty ports of benchmarks/file_ports.py: of 1,060 right ones 2 % score less, of 62 arrays that the "
        "reference does not have three quarters",
    )
    rounds: int = threshold(3, "rounds in which what is paired tells of the rest", _PORTS)

    fewest_values: int = threshold(4, "values that a tensor must have for values alone to pair it", _PORTS)
    names_beside_values: float = threshold(0.5, "the part that names count for where values single tensors out", _PORTS)
    like_names: float = threshold(1.0, "what names must say to be called alike", _PORTS)
    clearly_named: float = threshold(0.3, "by how much the names of a pair must be more alike than those of its rivals", _PORTS)
    told: float = threshold(0.5, "what siblings, or a correlation, must say to be believed", _PORTS)
    confidence_single: float = threshold(0.97, "confidence in a pair that values single out", _PORTS)
    confidence_values: float = threshold(0.9, "confidence in a pair whose values agree", _PORTS)
    confidence_siblings: float = threshold(0.85, "confidence in a pair that siblings support", _PORTS)
    confidence_names: float = threshold(0.6, "confidence in a pair of like names", _PORTS)
    confidence_order: float = threshold(0.4, "confidence in a pair that only shape and order support", _PORTS)

    settled: float = threshold(1e-4, "error up to which what comes later agrees, so that nothing before it is wrong with effect", _PORTS)
    reading_margin: float = threshold(
        0.2, "an order of axes is read for its values where its error is below this part of the next one's", _PORTS
    )

    stored_share: float = threshold(0.95, "share of a tensor's numbers that round to the port's where a float32 run was stored", _PORTS)
    rounded_values: int = threshold(32, "rounded numbers that a tensor must hold to tell how it was stored", _PORTS)

    equal_words: float = threshold(0.95, "likeness of two words of one beginning", _PORTS)
    short_word: float = threshold(0.6, "likeness of a word and of what leaves letters of it out", _PORTS)
    other_end: float = threshold(0.6, "the part that likeness keeps where one name is of an input and the other is not", _PORTS)
    end_weight: float = threshold(0.3, "the weight of the words in and out beside those of a path", _PORTS)


THRESHOLDS = ArrayFileThresholds()
