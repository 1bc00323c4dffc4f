"""Every number that decides which sites, calls, records and layouts correspond. Code reads ``THRESHOLDS.name`` when it needs it."""

from __future__ import annotations

from dataclasses import dataclass

from tracediff.thresholds import threshold

_BY_HAND = "set by hand, never measured alone"

_SQUARES = "set by hand, in parts of what one error is worth; benchmarks/squares.py, 214 runs: no layout wrong of 28,900"


def _guarded(test: str) -> str:
    return f"set by hand; tests/test_alignment_{test}.py guards what it decides, not the exact value"


@dataclass(frozen=True)
class Thresholds:
    """The numbers of the alignment, in the order of its steps: evidence, scores, sites, calls, boundaries of calls, layouts, confidences.

    A *score* of two sites is a sum; ``NAME_equal`` and ``NAME_different`` are what a shared and a differing property add to it.
    A *distance* of two tensors compares their statistics and is relative to their scale: 0 for equal values, about 1 for unrelated ones.
    """

    # -- evidence from parameters: parameters.py ----------------------------------------------------------------------------

    constant_spread: float = threshold(1e-6, "a parameter whose spread is below this part of its mean is constant", _BY_HAND)
    parameter_error: float = threshold(1e-4, "axis vectors that differ by less of their spread are called equal", _guarded("parameters"))
    parameter_entries: int = threshold(256, "entries of an axis vector that are compared", _BY_HAND)
    parameter_corner: int = threshold(4, "entries of an axis vector that place it in the search tree", _BY_HAND)
    parameter_radius: float = threshold(0.35, "distance in that tree within which two parameters are compared", _BY_HAND)
    parameter_crowd: int = threshold(64, "more equal parameters than this say nothing about any two of them", _guarded("parameters"))
    many_entries: int = threshold(24, "so many compared entries allow the largest error", _BY_HAND)
    many_entries_error: float = threshold(0.3, "the error allowed to two parameters with many entries", _guarded("parameters"))
    some_entries: int = threshold(8, "so many compared entries allow a middling error", _BY_HAND)
    some_entries_error: float = threshold(0.1, "the error allowed to two parameters with some entries", _BY_HAND)
    few_entries_error: float = threshold(1e-3, "the error allowed to two parameters with few entries", _BY_HAND)
    profile_corner: int = threshold(12, "numbers of a parameter's profile (moments, quantiles) that place it in the search tree", _BY_HAND)
    profile_radius: float = threshold(1e-4, "distance in that tree within which two profiles are compared", _BY_HAND)
    profile_error: float = threshold(1e-6, "profiles that differ by less hold the same values in another order", _guarded("parameters"))
    profile_elements: int = threshold(16, "fewer elements than this have no telling profile", _BY_HAND)
    sign_rows: int = threshold(28, "an axis vector with fewer entries has no telling signs", _BY_HAND)
    sign_share: float = threshold(0.2, "signs tell where at least this share, and at most the rest, is positive", _BY_HAND)
    sign_pattern: int = threshold(32, "signs that must all agree before the others are looked at", _BY_HAND)
    sign_agreement: float = threshold(
        0.97, "the share of equal signs above which rows are the same up to their scale", _guarded("parameters")
    )
    block_slack: float = threshold(
        1e-3,
        "entries of a fused block may differ by this part of the block's spread, and tell no more where they differ by less",
        _guarded("parameters"),
    )
    block_roundings: float = threshold(
        4.0, "roundings of the coarser dtype, relative to their size, by which entries of a fused block may differ", _BY_HAND
    )
    block_by_chance: float = threshold(
        1e-6, "chance that entries of any two vectors that are looked at agree so far, up to which a fused block is accepted", _BY_HAND
    )
    blocks_at_once: int = threshold(4096, "fused blocks that are looked for at once; bounds memory only", _BY_HAND)
    fused_share: float = threshold(0.5, "the share of a site's parameters that must be blocks of a fused one", _BY_HAND)

    # -- evidence from values: values.py ------------------------------------------------------------------------------------

    fewest_elements: int = threshold(4, "a tensor with fewer elements is no evidence", _BY_HAND)
    varies: float = threshold(1e-6, "a tensor whose spread is below this part of its mean is no evidence", _BY_HAND)
    content_digits: int = threshold(8, "decimals to which statistics of one run must agree to be of one content", _BY_HAND)
    extreme_limit: float = threshold(30.0, "minimum and maximum are clipped at so many root mean squares", _BY_HAND)
    extreme_damping: float = threshold(3.0, "minimum, maximum and skew count so many times less than the other statistics", _BY_HAND)
    close: float = threshold(1e-3, "distance below which two contents in single precision may be one", _BY_HAND)
    close_in_half: float = threshold(
        3e-2, "distance below which two contents may be one where either is in half precision", _guarded("boundaries")
    )
    coarse_roundoff: float = threshold(1e-5, "a dtype with a larger round-off counts as half precision", _BY_HAND)
    second_nearest: float = threshold(0.2, "the nearest content must be within this part of the second nearest's distance", _BY_HAND)
    least_distance: float = threshold(1e-9, "a smaller distance counts as this one when contents are ranked", _BY_HAND)
    content_crowd: int = threshold(24, "a content that more sites see says nothing about any two of them", _BY_HAND)
    norm_digits: int = threshold(6, "decimals of the norm by which a rotated tensor is recognised", _BY_HAND)

    # -- evidence from the scores of written-out attention: attention.py ----------------------------------------------------

    attention_elements: int = threshold(1 << 20, "a tensor with more elements is not read for the roles of projections", _BY_HAND)
    attention_softmaxes: int = threshold(512, "softmaxes that are looked at", _BY_HAND)
    attention_steps: int = threshold(12, "queries and keys whose products are compared with the softmax's input", _BY_HAND)
    attention_candidates: int = threshold(6, "projections before a softmax that may have made its input", _BY_HAND)
    attention_entries: int = threshold(8, "fewer unmasked scores than this say nothing", _BY_HAND)
    attention_correlation: float = threshold(0.98, "correlation above which two projections made a softmax's input", _BY_HAND)

    # -- what parameters and values say of two sites: pair_evidence.py ------------------------------------------------------

    parameters_equal: float = threshold(2.0, "what it is worth to own the same parameters", _BY_HAND)
    step_of_whole: float = threshold(6.0, "less where one owns a step of what the other owns: more than all else says", _guarded("sites"))
    misplaced: float = threshold(0.25, "the part of it that is left where a site takes in just what another site does", _guarded("sites"))
    inputs_seen_equal: float = threshold(0.7, "what equal input values are worth", _BY_HAND)
    outputs_seen_equal: float = threshold(0.8, "what equal output values are worth", _BY_HAND)
    both_seen_equal: float = threshold(0.8, "what it is worth beyond that where inputs and outputs are equal", _BY_HAND)
    placed: float = threshold(1.5, "what it is worth to take in what no other site of the kind takes in", _guarded("sites"))
    same_inputs: float = threshold(0.99, "the share of equal inputs from which on two sites take in the same", _BY_HAND)
    all_parameters: float = threshold(0.99, "the share of equal parameters from which on two sites own the same", _BY_HAND)
    same_place: float = threshold(0.5, "likeness of what two callers call from which on they may have one place", _BY_HAND)

    # -- what speaks for two sites by themselves: voices.py ----------------------------------------------------------------

    role_equal: float = threshold(0.5, "equal roles (linear, norm, silu...)", _BY_HAND)
    role_different: float = threshold(-0.8, "different roles", _guarded("roles"))
    type_equal: float = threshold(0.2, "equal names of the class", _BY_HAND)
    type_different: float = threshold(0.0, "different names of the class", _BY_HAND)
    outputs_equal: float = threshold(0.3, "equal shapes of outputs", _BY_HAND)
    outputs_different: float = threshold(-0.3, "different shapes of outputs", _BY_HAND)
    inputs_equal: float = threshold(0.2, "equal shapes of inputs", _BY_HAND)
    inputs_different: float = threshold(-0.2, "different shapes of inputs", _BY_HAND)
    stage_equal: float = threshold(0.3, "equal stages", _BY_HAND)
    stage_different: float = threshold(-1.0, "different stages", _BY_HAND)
    near_equal: float = threshold(0.25, "equal neighbours in the flow of data, one step away", _BY_HAND)
    near_different: float = threshold(0.0, "different neighbours one step away", _BY_HAND)
    around_equal: float = threshold(0.25, "equal neighbours in the flow of data, two steps away", _BY_HAND)
    around_different: float = threshold(0.0, "different neighbours two steps away", _BY_HAND)
    projection_equal: float = threshold(0.4, "both make an attention's queries, or both its keys", _BY_HAND)
    projection_different: float = threshold(-0.6, "one makes an attention's queries, the other its keys", _BY_HAND)
    kind_equal: float = threshold(0.0, "equal kinds of site (module, method, function, tap)", _BY_HAND)
    kind_different: float = threshold(-0.3, "different kinds of site", _BY_HAND)
    made_equal: float = threshold(0.2, "both hand on what a call in them returned, or both make something of it", _BY_HAND)
    made_different: float = threshold(-0.4, "one hands on what a call in it returned, the other makes something of it", _BY_HAND)
    top_equal: float = threshold(0.2, "both call others, and the run itself calls both, or neither", _BY_HAND)
    top_different: float = threshold(-0.3, "both call others, and the run itself calls one of them", _BY_HAND)
    call_count_equal: float = threshold(0.1, "equally many calls", _BY_HAND)
    call_count_different: float = threshold(0.0, "not equally many calls", _BY_HAND)
    largest_equal: float = threshold(0.8, "equal axes of the largest own parameter", _BY_HAND)
    largest_different: float = threshold(-1.5, "different axes of the largest own parameter", _BY_HAND)
    neither_owns: float = threshold(0.2, "neither site owns a parameter", _BY_HAND)
    one_leaf_owns: float = threshold(-1.2, "of two leaves only one owns a parameter", _BY_HAND)
    function_equal: float = threshold(0.5, "calls of the same function", _BY_HAND)
    function_as_module: float = threshold(-0.2, "a function and a module of the same role", _BY_HAND)
    function_different: float = threshold(-6.0, "a function and anything else", _BY_HAND)
    attributes_agree: float = threshold(0.3, "all scalar attributes that both have agree; minus that where none does", _BY_HAND)
    identity_different: float = threshold(6.0, "against pairing what hands on its input with what changes it", _guarded("roles"))
    words_alike: float = threshold(0.6, "equal words in the names, where names are trusted fully", _BY_HAND)
    same_name: float = threshold(2.6, "the same full name; more than equal weights, which may stand in the wrong place", _guarded("votes"))
    least_trust: float = threshold(0.2, "trust in names below which they do not count", _BY_HAND)
    vocabulary_trust: float = threshold(1.6, "trust in names is so many times the share of words that both sides use", _BY_HAND)
    level_alike: float = threshold(2.0, "two callers with the same modules below; the next number is taken off again", _BY_HAND)
    level_unlike: float = threshold(1.0, "against two callers with nothing alike below", _BY_HAND)
    same_bag: float = threshold(0.97, "likeness of what lies below two callers from which on it is the same", _guarded("sites"))
    leaf_for_level: float = threshold(0.6, "a leaf and a caller that holds just such a leaf", _guarded("sites"))
    leaf_for_less: float = threshold(-0.2, "a leaf and a caller that holds something else", _BY_HAND)
    more_inside: float = threshold(5.0, "against pairing a leaf with a caller that holds more than such a leaf", _BY_HAND)
    overlap_worth: float = threshold(2.5, "two callers all of whose anchors below are paired with each other", _BY_HAND)
    overlap_doubt: int = threshold(2, "common anchors that are discounted: with so many the share of them counts half", _BY_HAND)

    anchored_share: float = threshold(0.5, "queries and keys are distinguished by values only where fewer owners are anchored", _BY_HAND)

    # -- the assignment of sites: candidates.py, ties.py, votes.py, soft_assignment.py, sites.py -----------------------------

    as_many_before: float = threshold(0.12, "as many sites of the same kind before", _BY_HAND)
    as_many_behind: float = threshold(0.1, "as many sites of the same kind behind", _BY_HAND)
    wrapper_for_wrapped: float = threshold(4.0, "against a module that hands on all that it takes in, and one that does more", _BY_HAND)
    all_pairs: int = threshold(30_000, "pairs of sites of one kind up to which all are asked about", _BY_HAND)
    candidates: int = threshold(8, "candidates that are kept for each site", _BY_HAND)
    hopeless: float = threshold(-3.0, "candidates of whom less is said are not kept", _BY_HAND)
    has_partner: float = threshold(0.5, "the belief in any partner from which on a caller is no level to pass over", _BY_HAND)
    levels_passed_over: int = threshold(4, "levels between two callers and what they call up to which it is theirs", _BY_HAND)
    least_belief: float = threshold(1e-3, "a weaker belief counts as this one", _BY_HAND)
    callers_differ: float = threshold(1.5, "against two sites whose callers are no pair", _BY_HAND)
    callers_differ_at_last: float = threshold(0.6, "the same for sites that are left over", _BY_HAND)
    callers_differ_unmoved: float = threshold(4.0, "the same for sites that own and call nothing, or return other shapes", _BY_HAND)
    contents_common: float = threshold(2.0, "two callers that call the same pairs", _BY_HAND)
    contents_elsewhere: float = threshold(2.0, "against two callers whose calls have partners elsewhere", _BY_HAND)
    untelling_content: float = threshold(0.25, "the weight of a call that owns and calls nothing among what a caller calls", _BY_HAND)
    siblings_alike: float = threshold(4.0, "all of a numbered row, or of the members of a class, pair so", _BY_HAND)
    classes_alike: float = threshold(1.0, "all of a class are paired with one class", _BY_HAND)
    sinkhorn_steps: int = threshold(6, "steps of scaling in each round", _BY_HAND)
    least_chosen: float = threshold(0.05, "the least belief at last in two sites that are paired", _BY_HAND)
    rounds: int = threshold(14, "rounds in which the beliefs are cooled", _BY_HAND)
    hottest: float = threshold(1.0, "the temperature of the first round, in the unit of the voices", _BY_HAND)
    coldest: float = threshold(0.03, "the temperature of the last round", _BY_HAND)

    # -- bounds on the work, and what else decides on sites: order.py, fused.py, levels.py, site_report.py -------------------

    spelling: float = threshold(0.3, "likeness in spelling from which on a name is proposed in an error message", _BY_HAND)
    largest_table: int = threshold(4_000_000, "cells of a table of scores that is aligned in one piece", _guarded("order"))

    in_order: float = threshold(0.15, "what it is worth to keep the order of calls where assignment could break it", _guarded("order"))
    worth_pairing: float = threshold(0.3, "the least score of two siblings that are paired", _BY_HAND)
    consistent: float = threshold(0.7, "the least share of what is paired below two callers that must be paired with each other", _BY_HAND)
    held_alike: float = threshold(0.8, "the least common share of what two modules hold for the two to be paired", _BY_HAND)
    rival_margin: float = threshold(0.05, "a sibling that scores so little less than the partner is named as its rival", _guarded("sites"))
    rivals_named: int = threshold(3, "rivals that are named", _BY_HAND)
    given_score: float = threshold(9.0, "the score of a pair that a mapping states", _BY_HAND)
    fused_score: float = threshold(3.0, "the score of a part whose parameters are a block of the whole's", _BY_HAND)
    fused_by_shape_score: float = threshold(1.5, "the score of a part that only shapes, or a gap among the parts, pairs", _BY_HAND)
    fused_parts: int = threshold(4, "the most neighbours whose outputs may add up to one fused site's", _BY_HAND)
    sibling_votes: int = threshold(2, "siblings that must agree on a way to pair", _guarded("votes"))
    sibling_majority: int = threshold(2, "agreeing siblings for each that pairs otherwise", _guarded("votes"))

    # -- pairing calls: calls.py, call_groups.py, functions.py, call_evidence.py --------------------------------------------

    call_shape: float = threshold(1.0, "two calls of one site that return the same shape", _BY_HAND)
    call_values: float = threshold(2.0, "two calls of one site that return the same values", _guarded("records"))
    call_distance: float = threshold(0.1, "distance of two calls' outputs from which on they say nothing", _BY_HAND)
    call_cut_short: float = threshold(0.5, "the share of one call's work that the pieces of a shorter run must do", _guarded("calls"))
    dealt_calls: int = threshold(4, "calls that do one call's work up to which their order is looked at", _guarded("calls"))
    function_distance: float = threshold(0.02, "distance of two function calls' tensors from which on they say nothing", _BY_HAND)
    function_sure: float = threshold(
        1.0, "the least that values say of two function calls to be sure; 2 is input and output equal", _BY_HAND
    )
    function_margin: float = threshold(0.5, "by how much that must exceed what values say of any other call", _BY_HAND)
    function_line: float = threshold(
        1.5, "what it is worth that two function calls are made by paired lines of code", _guarded("functions")
    )
    function_conflict: float = threshold(
        2.0, "against two function calls of unpaired lines, or with reordered numbers", _guarded("functions")
    )
    function_neighbour: float = threshold(0.25, "what it is worth to follow, or precede, the same call by as many steps", _BY_HAND)
    function_not_in_step: float = threshold(
        0.75, "by how much another pairing must beat one to one, where counts agree", _guarded("functions")
    )
    function_worth_pairing: float = threshold(0.45, "the least score of two function calls, where counts disagree", _guarded("functions"))
    function_reordered: float = threshold(
        0.1, "the least error of reordered numbers; sorted it is at most this part of it", _guarded("functions")
    )
    function_samples: int = threshold(4, "calls of two lines of code whose values are read", _BY_HAND)
    function_elements: int = threshold(1 << 22, "a function's tensor with more elements is not read", _BY_HAND)
    function_pairs: int = threshold(1 << 18, "pairs of calls in a group above which only equal counts pair", _BY_HAND)

    # -- pairing the boundaries of two calls: arguments.py, boundary_scores.py, boundaries.py -------------------------------

    boundary_base: float = threshold(0.1, "two boundaries among several of their kind", _BY_HAND)
    boundary_alone: float = threshold(0.9, "two boundaries that are the only ones of their kind", _BY_HAND)
    boundary_sole_output: float = threshold(1.5, "two outputs that are the only ones", _BY_HAND)
    boundary_same_place: float = threshold(0.25, "the same place among the boundaries of a kind", _BY_HAND)
    boundary_refused: float = threshold(-1.0, "boundaries of different kinds, or a mask and whole numbers", _BY_HAND)
    boundary_same_name: float = threshold(1.0, "equal names", _guarded("records"))
    boundary_other_name: float = threshold(-0.3, "different names", _guarded("roles"))
    boundary_of_function: float = threshold(3.0, "equal boundaries of two functions, whose boundaries are named alike", _BY_HAND)
    boundary_fits: float = threshold(0.5, "some layout reads one shape as the other", _BY_HAND)
    boundary_misfits: float = threshold(-0.5, "no layout reads one shape as the other", _BY_HAND)
    boundary_exactness: float = threshold(-0.5, "only one of the two holds whole numbers", _BY_HAND)
    boundary_equal: float = threshold(1e-3, "distance below which two boundaries hold equal values", _BY_HAND)
    boundary_close: float = threshold(0.05, "distance below which two boundaries are close", _BY_HAND)
    boundary_alike: float = threshold(0.3, "distance below which two boundaries are alike", _BY_HAND)
    boundary_equal_score: float = threshold(2.0, "equal values", _guarded("records"))
    boundary_close_score: float = threshold(1.2, "close values", _BY_HAND)
    boundary_alike_score: float = threshold(0.4, "alike values", _BY_HAND)
    masks_equal_score: float = threshold(2.0, "two masks of different conventions that let the same through", _BY_HAND)
    masks_different_score: float = threshold(0.1, "two masks of different conventions that do not", _BY_HAND)
    role_margin: float = threshold(1.0, "by how much calls of the same role must score higher than a site's own", _BY_HAND)
    moved_distance: float = threshold(1e-2, "distance from which on two boundaries may lie in different places", _guarded("boundaries"))
    constant_distance: float = threshold(0.05, "the distance of two equal constants, which say little", _BY_HAND)
    padded_distance: float = threshold(0.05, "the least distance of two tensors of which one holds further zeros", _BY_HAND)

    # -- layouts: axes.py, layouts.py, partial_layouts.py, layout_evidence.py, layout_ties.py, propagation.py ----------------

    clearly_better: float = threshold(
        0.2, "a layout is preferred to a plainer one where its error is below this part of it", _guarded("axes")
    )
    layout_agrees: float = threshold(1e-2, "distance, or relative error, below which two tensors agree in a layout", _guarded("records"))
    layout_too_far: float = threshold(0.2, "distance above which the values are not read to choose a layout", _BY_HAND)
    layout_consumers: int = threshold(4, "consumers of a tensor that are asked for its layout", _BY_HAND)
    layout_less_plain: float = threshold(0.02, "against a layout for each that is plainer", _SQUARES)
    layout_values_most: float = threshold(3.0, "the most that values say for a layout; what one error is worth", _SQUARES)
    layout_own_channels: float = threshold(6.0, "a layer's channels lie on its partner's channels", _SQUARES)
    layout_handed_channels: float = threshold(2.0, "channels lie on channels where a layer takes in that very tensor", _SQUARES)
    layout_consumed_alike: float = threshold(6.0, "what takes in a tensor returns the same: two errors would be needed otherwise", _SQUARES)
    layout_consumed_otherwise: float = threshold(2.0, "a layer that takes in a tensor returns something else", _SQUARES)
    layout_handed_on: float = threshold(4.0, "one tensor, handed on, has one layout", _SQUARES)
    layout_kept: float = threshold(3.0, "a call returns its axes in the order in which it takes them in", _SQUARES)
    layout_passed_through: float = threshold(2.0, "code between calls keeps the order of the axes", _SQUARES)
    layout_other_calls: float = threshold(3.0, "a boundary has one order of axes in all its calls", _SQUARES)
    layout_siblings: float = threshold(1.5, "a boundary has one order of axes in all sites of one role", _SQUARES)
    layout_sources: int = threshold(8, "earlier tensors of the same content that a tensor may come from", _SQUARES)
    same_run: float = threshold(1e-4, "relative error below which two tensors of one run hold the same numbers", _SQUARES)
    layout_told: float = threshold(0.1, "a source that says less is not named", _SQUARES)
    propagation_sweeps: int = threshold(40, "sweeps after which propagation ends", _BY_HAND)
    propagation_settled: float = threshold(1e-3, "propagation ends where no message changes by more", _BY_HAND)
    propagation_undamped: int = threshold(10, "sweeps in which messages are renewed whole", _BY_HAND)
    propagation_damping: float = threshold(0.2, "the part of a message that is kept when it is renewed", _BY_HAND)
    layout_elements: int = threshold(1 << 26, "a tensor with more elements is not read to choose a layout", _BY_HAND)
    layout_axes: int = threshold(6, "axes longer than 1 up to which axes are permuted and merged", _BY_HAND)
    layout_candidates: int = threshold(48, "layouts of two shapes that are considered", _guarded("axes"))
    window_rank: int = threshold(4, "axes up to which padding is considered", _BY_HAND)
    window_axes: int = threshold(2, "axes that may be padded", _BY_HAND)
    window_factor: int = threshold(2, "a padded axis may be so many times as long, and", _BY_HAND)
    window_extra: int = threshold(16, "longer by so many elements", _BY_HAND)

    # -- confidences, in words of the result: site_report.py, records.py, split_calls.py ------------------------------------

    strong_evidence: float = threshold(1.8, "evidence from parameters, values and anchors below that makes a pair nearly certain", _BY_HAND)
    good_evidence: float = threshold(0.9, "evidence that makes a pair well founded", _BY_HAND)
    extra_evidence: float = threshold(3.5, "evidence that earns the bonus", _BY_HAND)
    confidence_strong: float = threshold(0.97, "confidence in a pair with strong evidence", _BY_HAND)
    confidence_good: float = threshold(0.93, "confidence in a pair with good evidence, or in a fused part", _BY_HAND)
    confidence_some: float = threshold(0.88, "confidence in a pair with some evidence", _BY_HAND)
    confidence_order: float = threshold(0.6, "confidence in a pair that only structure and order support", _guarded("sites"))
    confidence_same_name: float = threshold(0.9, "the least confidence in a pair of equal names", _BY_HAND)
    confidence_bonus: float = threshold(0.02, "added for extra evidence", _BY_HAND)
    weak_score: float = threshold(0.8, "a pair without evidence and with a lower score is weak", _BY_HAND)
    confidence_weak: float = threshold(0.15, "taken off for a weak pair", _BY_HAND)
    confidence_rivals: float = threshold(0.2, "taken off where evidence does not rule out the rivals", _guarded("sites"))
    confidence_least: float = threshold(0.05, "the least confidence in a pair", _BY_HAND)
    rival_evidence: float = threshold(0.1, "evidence for a rival may be so much weaker and still leave the pair open", _BY_HAND)
    hands_on: float = threshold(
        1e-6, "relative difference of statistics within which a wrapper returns what its only call returned", _BY_HAND
    )
    candidates_named: int = threshold(3, "candidates that are named for a site without partner", _guarded("sites"))
    candidate_score: float = threshold(0.2, "the least score of a candidate that is named", _BY_HAND)
    record_sure: float = threshold(1.0, "the score above which two boundaries are surely paired", _BY_HAND)
    record_likely: float = threshold(0.4, "the score above which two boundaries are probably paired", _BY_HAND)
    confidence_sure: float = threshold(0.99, "the most confidence in surely paired boundaries", _BY_HAND)
    confidence_likely: float = threshold(0.8, "the most confidence in probably paired boundaries", _BY_HAND)
    confidence_unlikely: float = threshold(0.6, "the most confidence in other paired boundaries", _BY_HAND)
    confidence_no_layout: float = threshold(0.5, "the part of its confidence that a pair without layout keeps", _BY_HAND)
    confidence_split: float = threshold(0.9, "the most confidence in records of calls that were split", _BY_HAND)
    confidence_unsure_call: float = threshold(
        0.4, "the most confidence in calls that only order and neighbours distinguish", _guarded("functions")
    )
    confidence_stray: float = threshold(0.5, "confidence in an error of the port that was raised in no paired call", _BY_HAND)


THRESHOLDS = Thresholds()
