"""Every number that decides about causes: `THRESHOLDS`, read where it is needed.

Those that begin with ``sure_`` are likelihoods of a cause whose evidence is there. They rank causes against each other. The report shows
the share of causes of such a likelihood that were right: `CONFIDENCE`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tracediff.thresholds import threshold

_SCENES = "set by hand; the scenes of tests/cause_scenes.py and tests/test_causes_detectors.py hold with it; never varied alone"
_FORMULAS = "set by hand; the formulas of tests/test_causes_formulas.py are found with it; never varied alone"
_PLANTED = "set by hand; the planted faults and the golden answers hold with it; never varied alone"
_NEVER = "set by hand, never measured alone"
_COARSE = "set by hand around what simulated products of 10 bits err by in tests/test_products.py; never varied alone"
_RANK = "set by hand to rank the kinds; the golden answers hold the order"
_WORK = "set by hand to bound time and memory, never measured alone"


@dataclass(frozen=True)
class Thresholds:
    """Cut-offs, tolerances, sizes that bound work, and confidences of `tracediff.causes`."""

    # ---------------------------------------------------------------------------------------------------- what is explained
    formulas_searched: int = threshold(
        48, "findings that no detector is sure of at which a formula is looked for: a tenth of a second each", _WORK
    )
    largest_tensor: int = threshold(2**24, "tensors of more float64 elements are not read", _WORK)
    latest_in_hand: int = threshold(24, "so many results of calls, the latest, are in hand", _WORK)
    sure_enough: float = threshold(0.88, "a confirmed cause of this confidence makes the search for formulas needless", _FORMULAS)
    amplification: float = threshold(
        100.0, "times its own relative size, at most, that a parameter's difference is found in an output", _PLANTED
    )
    sure_stranger: float = threshold(
        0.9, "weights.unloaded: nothing of the reference is in a module, nothing of its partner in the port", _RANK
    )
    same_spread: float = threshold(1e-3, "relative difference of two spreads up to which a parameter may be another plus a number", _NEVER)
    nearness_of_child: float = threshold(0.5, "weight of a finding about a parameter that a child of the culprit owns", _NEVER)

    # ------------------------------------------------------------------------------------------------------ is it reproduced
    reproduced: float = threshold(0.02, "an edit that leaves at most this share of the difference is what the port does", _SCENES)
    coincidence: float = threshold(
        10.0, "a proven edit that leaves so many times what another leaves, and more than noise, fits by chance", _SCENES
    )
    coincidence_at_least: float = threshold(1e-3, "an edit that leaves no larger share of the difference fits by no chance", _SCENES)
    reproduced_noise: float = threshold(3.0, "so many times the allowed error may be left besides", _PLANTED)
    reproduced_at_most: float = threshold(0.2, "noise excuses no larger share of the difference than this", _SCENES)
    explained_by_chance: float = threshold(
        1e-5, "chance that one edit explains a few random values, up to which it proves something", "three returned sums of a CRF"
    )
    sure_of_noise: float = threshold(0.5, "a number fitted to an error that may be noise", _RANK)
    largest_control: int = threshold(2**22, "values up to which a control has the error's spectrum", _WORK)
    same_control: float = threshold(0.9, "cosine from which on a control is the error itself, and controls nothing", _NEVER)
    same_form: float = threshold(1e-4, "relative L2 up to which a formula gives the reference", _SCENES)
    same_form_noise: float = threshold(10.0, "or so many times the allowed error", _PLANTED)
    least_condition: float = threshold(1e-3, "least to largest singular value below which coefficients are not told apart", _SCENES)

    # --------------------------------------------------------------------------------------------------------- arrangement
    longest_matched_axis: int = threshold(4096, "indices of longer axes are not matched one to one", _WORK)
    shifts_tried: int = threshold(8, "a shift along an axis is tried by up to so many places", _WORK)
    least_shifted: int = threshold(4, "along fewer places a slice that resembles its neighbour would be a shift", _NEVER)
    least_matched_axis: int = threshold(3, "fewer indices have no order that halves would not show", _NEVER)
    least_slice: int = threshold(4, "slices of fewer values are not matched with each other", _NEVER)
    largest_divisor: int = threshold(512, "axes are taken apart into at most so many heads", _WORK)
    divisors_tried: int = threshold(24, "so many numbers of heads are tried", _WORK)
    sure_batch_unguided: float = threshold(0.85, "cfg.formula: the unconditional half of a batch is given the condition", _RANK)
    sure_reversed: float = threshold(0.95, "order.reversed: the tensor flipped reproduces the port", _RANK)
    sure_parts_exchanged: float = threshold(0.9, "order.concat: parts or slices in another order reproduce the port", _RANK)
    sure_shifted: float = threshold(0.85, "padding.shift or position.offset: the inside agrees after a shift", _RANK)
    sure_slices_moved: float = threshold(0.9, "order.channels or order.roles: each slice is found elsewhere", _RANK)
    sure_heads_reshaped: float = threshold(0.95, "heads.layout: two axes reshaped without a transposition", _RANK)
    sure_axis_taken_apart: float = threshold(0.9, "heads.layout: one axis read as (m, n) in the place of (n, m)", _RANK)
    sure_other_argument: float = threshold(0.95, "order.roles: the port hands over another argument of the same call", _RANK)
    sure_other_tensor: float = threshold(0.75, "order.roles: the port has here what another call returned", _RANK)

    # ----------------------------------------------------------------------------------------------------------- attention
    most_scores: int = threshold(2**24, "attention with more scores is not computed again", _WORK)
    projections_tried: int = threshold(6, "so many of the latest tensors in hand may be queries, keys and values", _WORK)
    projections_kept: int = threshold(4, "of what those tensors split into, so many of the latest are tried in all orders", _WORK)
    most_heads: int = threshold(16, "numbers of heads tried for written-out attention", _WORK)
    mask_hides: float = threshold(-1e3, "what an additive mask adds to the scores of hidden places is below this", _NEVER)
    same_attention_scale: float = threshold(1e-4, "relative difference up to which two scales are one", _NEVER)
    sure_attention_recomputed: float = threshold(0.95, "attention computed again under one edit gives the port's output", _RANK)

    # ---------------------------------------------------------------------------------------------------------- attributes
    sure_attribute: float = threshold(0.7, "an attribute of the two modules differs", _RANK)
    sure_eps_attribute: float = threshold(0.85, "norm.eps: the attribute eps of the two modules differs", _RANK)
    sure_training_itself: float = threshold(0.9, "mode.train, dropout: the culprit itself is in training mode", _RANK)
    sure_training_inside: float = threshold(0.5, "mode.train, dropout: a module inside the culprit is in training mode", _RANK)

    # --------------------------------------------------------------------------------------------------------------- calls
    sure_call_lacking: float = threshold(0.85, "norm.missing, position.missing, branch.missing: only the reference calls a module", _RANK)
    sure_call_extra: float = threshold(0.75, "branch.extra: only the port calls a module", _RANK)
    sure_norm_moved: float = threshold(0.85, "norm.placement: the same calls, a norm in another place", _RANK)
    sure_calls_reordered: float = threshold(0.5, "order.roles: the same calls in another order", _RANK)

    # --------------------------------------------------------------------------------------------------------- combination
    most_terms: int = threshold(14, "so many tensors in hand may enter a sum, at most half of them inputs", _WORK)
    sum_sample: int = threshold(40_000, "sums are fitted to so many values", _WORK)
    fewest_summed: int = threshold(8, "fewer values are a sum of anything", _SCENES)
    most_times: int = threshold(64, "a multiple of so few values may be one of times", _NEVER)
    same_logarithm: float = threshold(1e-4, "relative difference up to which a factor is that of two logarithms", _SCENES)
    least_multiple: float = threshold(1e-12, "a smaller factor makes no multiple", _NEVER)
    least_addend: float = threshold(1e-9, "a smaller factor of a tensor in hand explains no difference", _NEVER)
    once_added: float = threshold(0.01, "a factor this close to -1 or +1 is a tensor left out or added once more", _NEVER)
    sum_reference: float = threshold(1e-5, "relative L2 up to which a sum gives the reference", _SCENES)
    sum_reference_noise: float = threshold(3.0, "or so many times the allowed error", _PLANTED)
    sum_port: float = threshold(1e-4, "relative L2 up to which a sum gives the port", _SCENES)
    sum_port_noise: float = threshold(10.0, "or so many times the allowed error", _PLANTED)
    least_coefficient: float = threshold(1e-6, "a smaller coefficient of the reference shows a term that is none", _NEVER)
    same_coefficient: float = threshold(1e-3, "relative difference up to which two coefficients, or a ratio and a number, are one", _NEVER)
    is_kept_whole: float = threshold(1e-4, "a coefficient this close to 1 is the state that a solver's step is added to", _NEVER)
    sure_logarithm: float = threshold(0.8, "units.log: the port is the reference times the ratio of two logarithms", _RANK)
    sure_times_scaled: float = threshold(0.85, "time.scale: few values, named as times, are a multiple", _RANK)
    sure_multiple: float = threshold(0.8, "scale: the port is a multiple of the reference", _RANK)
    sure_term_missing: float = threshold(0.9, "residual, branch or position.missing: the difference is -1 times a tensor in hand", _RANK)
    sure_term_extra: float = threshold(0.85, "branch.extra: the difference is +1 times a tensor in hand", _RANK)
    sure_recombined: float = threshold(0.9, "both sides are sums of the same tensors with other coefficients", _RANK)

    # ------------------------------------------------------------------------------------------------------- normalisation
    least_normalised: int = threshold(4, "shorter axes are not looked at as normalised, nor those with fewer values for each index", _NEVER)
    eps_bracket: float = threshold(0.6, "half width, in the logarithm, in which eps is refined around the best of the grid", _SCENES)
    eps_sections: int = threshold(24, "golden sections that refine eps", _SCENES)
    sure_not_normalised: float = threshold(0.95, "norm.missing: the port's output is its input", _RANK)
    sure_eps_fitted: float = threshold(0.95, "norm.eps: the norm with another eps reproduces the port", _RANK)
    sure_other_norm: float = threshold(0.8, "norm.missing: a norm of another type or over other axes reproduces the port", _RANK)
    sure_only_scaled: float = threshold(0.9, "norm.missing: gain and offset without the norm reproduce the port", _RANK)

    # ----------------------------------------------------------------------------------------------------------- pointwise
    few_digits: int = threshold(4, "precision: what so few binary digits give as well needs no rounding to half precision", _NEVER)
    fewest_clamped: int = threshold(16, "fewer values show no clamp", _SCENES)
    functions_of: int = threshold(6, "so many of the latest tensors of the shape are tried as arguments of a function", _WORK)
    gates_of: int = threshold(4, "so many of the latest tensors of the shape are tried as gates of each other", _WORK)
    beyond_limit: float = threshold(1e-5, "relative margin beyond which a value exceeds a clamp's limit", _NEVER)
    at_limit: float = threshold(1e-4, "relative difference up to which a value is at a clamp's limit", _NEVER)
    fewest_cut: int = threshold(2, "so many values must be cut for a clamp", _NEVER)
    sure_other_function: float = threshold(0.95, "activation, units.log: two functions of one tensor give the two sides", _RANK)
    sure_other_slope: float = threshold(0.9, "activation: a leaky ReLU of a fitted slope reproduces the port", _RANK)
    sure_clamped: float = threshold(0.9, "clamp, activation: one side is the other clipped", _RANK)

    # ------------------------------------------------------------------------------------------------------------ rotation
    least_rotated: int = threshold(4, "fewer channels are not looked at as rotated", _NEVER)
    fewer_channels: float = threshold(0.75, "one side rotates fewer channels where they are at most this share of the other's", _SCENES)
    channel_differs: float = threshold(1e-6, "relative to the largest value, the difference that shows a rotated channel", _SCENES)
    rotation_fit: float = threshold(1e-3, "error of unit numbers and of the rotated tensor up to which a rotation fits", _SCENES)
    same_angle: float = threshold(1e-3, "difference of unit numbers up to which two rotations are one", _SCENES)
    no_angle: float = threshold(1e-4, "difference from 1 of unit numbers up to which nothing is rotated", _SCENES)
    sure_rotation_missing: float = threshold(0.95, "rope.missing: the port is not rotated", _RANK)
    sure_rotation_variant: float = threshold(0.95, "rope.variant: the port rotates other pairs, or another number of channels", _RANK)
    sure_rotation_offset: float = threshold(0.95, "position.offset: the port's angles are those of other positions", _RANK)
    sure_other_angles: float = threshold(0.9, "rope.variant, position.offset: other directions, frequencies or constant angles", _RANK)

    # ------------------------------------------------------------------------------------------------------------ rounding
    fewest_distributed: int = threshold(64, "fewer values tell nothing of how they are distributed", _SCENES)
    counts_as_value: float = threshold(1e-3, "relative to the largest, values below this are not counted as dropped or kept", _NEVER)
    is_dropped: float = threshold(1e-4, "relative to the reference's, what is left of a dropped value", _NEVER)
    least_dropped: float = threshold(0.005, "a smaller share of zeros is no dropout", _NEVER)
    most_dropped: float = threshold(0.95, "a larger share of zeros is no dropout", _NEVER)
    fewest_dropped: int = threshold(2, "so many values must be 0 for dropout", _NEVER)
    same_dropout_factor: float = threshold(1e-2, "relative difference up to which the kept values share one factor", _NEVER)
    standard_errors: float = threshold(4.0, "correlation and moments of normal draws lie within so many standard errors", _SCENES)
    kurtosis_errors: float = threshold(6.0, "so many times wider for the fourth moment", _SCENES)
    sure_port_varies: float = threshold(0.8, "random: the port gives other values in a second run", _RANK)
    sure_left_in_training: float = threshold(0.97, "mode.train: dropped values, and the port's module is in training mode", _RANK)
    sure_dropped: float = threshold(0.95, "dropout: zeros, and the others larger by one factor", _RANK)
    sure_drawn: float = threshold(0.8, "random: standard normal numbers without a correlation", _RANK)
    sure_coarser_dtype: float = threshold(0.9, "precision: the port's tensor is of a coarser dtype, or holds only its numbers", _RANK)
    least_coarse: float = threshold(5e-5, "relative L2 below which no product of TF32's numbers errs", _COARSE)
    most_coarse: float = threshold(4e-3, "relative L2 above which no product of TF32's numbers errs, or is smaller", _COARSE)
    fewest_products: int = threshold(3, "fewer modules that multiply tell nothing of all products", _SCENES)
    fewest_coarse: float = threshold(0.9, "the share of the modules that multiply which are off where all products are coarse", _COARSE)
    most_fine_off: float = threshold(0.5, "the share of the other modules that may be off for another reason", _COARSE)
    values_a_factor: int = threshold(4, "fewer values for each index of an axis show no factor", _SCENES)
    sure_coarse_products: float = threshold(0.6, "precision: all that multiplies is off as TF32's products are", _RANK)
    sure_handed_coarser: float = threshold(0.8, "precision: a tensor in hand is of a coarser dtype in the port", _RANK)

    # ----------------------------------------------------------------------------------------------------------- timesteps
    least_sinusoidal: int = threshold(4, "narrower tensors are not looked at as sinusoidal embeddings", _NEVER)
    fewest_times: int = threshold(3, "fewer times have no course", _NEVER)
    same_course: float = threshold(1e-3, "difference, of a course from 0 to 1, up to which two courses of times are one", _SCENES)
    sure_embedding: float = threshold(0.95, "time.scale, order.concat, position.offset: two sinusoidal forms give the two sides", _RANK)
    sure_schedule: float = threshold(0.8, "ode.schedule: both sides have growing or falling numbers", _RANK)

    # ----------------------------------------------------------------------------------------------------- where in a tensor
    border: float = threshold(0.25, "the share of an axis at each end that counts as its border", _SCENES)
    least_bordered: int = threshold(8, "shorter axes have no border", _NEVER)
    counts_as_error: float = threshold(1e-3, "relative to the largest error, smaller ones are not counted", _NEVER)
    hidden_agree: float = threshold(1e-4, "relative L2 up to which values that neither side masks agree", _NEVER)
    sure_at_border: float = threshold(0.7, "padding.mode: a convolution differs at its ends only", _RANK)
    sure_other_keys: float = threshold(0.8, "cache, length: attention is handed another number of keys", _RANK)
    sure_numbers_offset: float = threshold(0.8, "position.offset: integers plus a constant", _RANK)
    sure_numbers_reversed: float = threshold(0.9, "order.reversed: integers in reverse", _RANK)
    sure_numbers_turned: float = threshold(0.85, "order.concat: the first integers come last", _RANK)
    sure_mask_inverted: float = threshold(0.95, "mask.wrong: what one side masks the other does not, and the other way round", _RANK)
    sure_mask_constant: float = threshold(0.8, "mask.missing: all values of the port's mask are one", _RANK)
    sure_mask_differs: float = threshold(0.7, "mask.wrong: some values of two boolean masks differ", _RANK)
    sure_seen_scaled: float = threshold(0.8, "scale: where nothing is masked the port is a multiple", _RANK)
    sure_nothing_masked: float = threshold(0.9, "mask.missing: the port masks nothing, the reference does", _RANK)
    sure_masked_elsewhere: float = threshold(0.85, "mask.wrong: other places are masked", _RANK)

    # ------------------------------------------------------------------------------------------------------------- formulas
    most_checked: int = threshold(40, "so many formulas of one form are fitted to the whole sample", _WORK)
    told_apart: float = threshold(
        20.0, "so many times what a formula may leave must two tensors differ for formulas to tell why", _FORMULAS
    )
    fewest_in_formula: int = threshold(8, "fewer values are told by any formula", _FORMULAS)
    half_sample: int = threshold(96, "half of the values that formulas are tried on", _WORK)
    most_added: int = threshold(12, "views that may be added, the constant among them", _WORK)
    most_views: int = threshold(48, "views that may stand alone in a formula", _WORK)
    most_factors: int = threshold(20, "views that may be multiplied", _WORK)
    formula_fit: float = threshold(1e-4, "relative L2 up to which a formula gives the reference, where the sides differ enough", _FORMULAS)
    formula_noise: float = threshold(10.0, "or so many times the allowed error", _FORMULAS)
    port_fit_at_most: float = threshold(0.01, "relative L2 that the port's formula may leave at most", _FORMULAS)
    independent: float = threshold(
        1e-12, "of the values' square: a factor that the added views explain up to this is not independent", _NEVER
    )
    least_term: float = threshold(1e-3, "a term that makes up a smaller share of the values is none", _FORMULAS)
    gain_is_one: float = threshold(1e-4, "a coefficient this close to 1 is 1", _FORMULAS)
    gain_differs: float = threshold(1e-3, "relative difference from which two gains differ", _NEVER)
    cost_factor_count: float = threshold(0.7, "distance of two formulas for each factor more or less", _FORMULAS)
    cost_function: float = threshold(1.0, "distance for another function", _FORMULAS)
    cost_other_view: float = threshold(0.8, "distance for another view of the same tensor", _FORMULAS)
    cost_other_tensor: float = threshold(2.0, "distance for another tensor", _FORMULAS)
    cost_added: float = threshold(1.5, "distance for each view added on one side only", _FORMULAS)
    cost_gain: float = threshold(0.5, "distance for another gain", _FORMULAS)
    worth_of_function: float = threshold(
        0.1, "what an equal function counts, where an equal view counts 1, when factors are paired", _NEVER
    )
    sure_formula: float = threshold(0.9, "two formulas that differ in one place give the two sides", _RANK)

    # -------------------------------------------------------------------------------------------------- recorded operations
    most_operations: int = threshold(600, "of more operations between what is in hand and a tensor none is changed", _WORK)
    operations_spent: int = threshold(400_000_000, "elements computed again, at most, while the changes of one divergence are tried", _WORK)
    operation_overhead: int = threshold(2_000, "what computing one operation again costs besides, in elements", _WORK)
    farthest_left_out: int = threshold(8, "so many operations in a row, at most, are left out together", _WORK)
    exchanged_at_most: int = threshold(12, "so many tensors of one shape are tried in the place of each other", _WORK)
    most_axes: int = threshold(4, "of a tensor of more axes single ones are tried in the place of those of an operation, no sets", _WORK)
    most_axes_flattened: int = threshold(4, "so many axes, at most, that a reshape makes one are tried in every order", _WORK)
    most_axes_rolled: int = threshold(3, "along so many axes, at most, a roll is tried by every shift of every other", _WORK)
    farthest_product: int = threshold(16, "so many operations before a softmax of attention its scores are multiplied, at most", _WORK)
    changed_alone: int = threshold(
        3, "of so many operations, at most, that one place in the code asks for, each is changed alone too", _WORK
    )
    glance: int = threshold(512, "values at which it is first looked whether a change may give the port's tensor", _WORK)
    glance_leaves: float = threshold(0.5, "share of the difference there from which on it cannot", _SCENES)
    dial_rounds: int = threshold(8, "steps that refine a number that operations are given", _SCENES)
    dial_step: float = threshold(1e-3, "relative step from which the effect of such a number is estimated", _NEVER)
    most_coordinates: int = threshold(1 << 16, "tensors of more numbers are not looked at as coordinates", _WORK)
    most_repeated: int = threshold(64, "what changes values at places named more often is not computed again so often", _WORK)
    least_window: int = threshold(8, "shorter vectors are not looked at as windows", _NEVER)
    same_window: float = threshold(1e-6, "difference of values up to which a vector is a window, whose largest value is 1", _SCENES)
    even_steps: float = threshold(1e-4, "steps of coordinates, or of logarithms of frequencies, that are equal up to this part", _SCENES)
    sure_operation_changed: float = threshold(0.93, "the reference's own operations, one of them changed, give the port's tensor", _RANK)
    sure_number_changed: float = threshold(0.92, "the same with one number fitted to the port's tensor", _RANK)

    # --------------------------------------------------------------------------------------------------------- tensor views
    latest_viewed: int = threshold(10, "so many of the latest tensors in hand are viewed", _WORK)
    largest_viewed: int = threshold(1 << 22, "tensors of more elements are not viewed", _WORK)
    largest_compared_view: int = threshold(1 << 16, "views of more elements are not compared with each other", _WORK)
    most_broadcasts: int = threshold(2, "so many ways to broadcast one tensor to a shape are tried", _WORK)
    most_padding: int = threshold(16, "an axis may be padded to twice its length and so many more", _WORK)

    # ------------------------------------------------------------------------------------------------------------- the pair
    sure_recorded: float = threshold(1.0, "raised, nonfinite, input, random: the records themselves are the fact", _RANK)
    sure_length_of_shapes: float = threshold(0.5, "length: two shapes that no layout reconciles", _RANK)
    sure_length_alone: float = threshold(0.9, "length: the places that both have agree, or numbers of another shape are drawn", _RANK)
    sure_mask_of_counts: float = threshold(0.9, "mask.missing, mask.wrong: values that one side masks", _RANK)
    sure_of_argument: float = threshold(0.8, "scale, norm.eps, mask: a scalar argument differs", _RANK)


THRESHOLDS = Thresholds()

Table = tuple[tuple[float, float], ...]
"""Likelihoods, rising, each with the share of causes that were right."""
CONFIDENCE: dict[str, Table] = {
    "confirmed": ((0.8, 0.86), (0.9, 0.86), (0.95, 0.95), (1.0, 0.97)),
    "weights": ((0.73, 0.17), (0.78, 0.93), (0.8, 0.95), (0.95, 0.95), (0.96, 0.96), (0.97, 0.97)),
    "likely": ((0.5, 0.12), (0.75, 0.12), (0.8, 0.26), (0.85, 0.26), (0.9, 0.95)),
}
"""The tables of confirmed causes, of wrong weights, and of all others.

Measured by ``python -m benchmarks.confidence --fit`` on 226 causes that were stated of faults planted into the pairs that are held out.
"""
