"""The numbers that decide what is said of two sets of weights."""

from __future__ import annotations

from dataclasses import dataclass

from tracediff.thresholds import threshold

_ALONE = "set by hand, never measured alone"
_KINDS = "set by hand; tests/test_parameters.py plants a fault of each kind, and guards the kind that is found"
_PAIRS = "set by hand; tests/test_parameters.py and test_parameters_chatterbox.py guard the pairs, not this number"
_SKETCHES = "set by hand above float64 rounding of a sketch; tests/test_parameters_sources.py compares traces without values"
_WORK = "set by hand to bound work; never measured"
_WORDING = "set by hand; decides a wording alone"
_TIES = "set by hand; decides ties alone"
_CODES = "set by hand; tests/test_quantised.py guards it"
_CONFIDENCE = "set by hand; no test asks how often the finding is right"


@dataclass(frozen=True)
class ParameterThresholds:
    """Correlations, relative errors, confidences from 0 to 1, and sizes that bound work."""

    # -- when values are the same (matching, layout_rules) --

    least_telling: int = threshold(4, "values below which no tensor is known by its values", _PAIRS)
    sketch_tolerance: float = threshold(1e-6, "relative L2 of axis vectors up to which tensors known by sketch are equal", _SKETCHES)
    arithmetic_roundoffs: float = threshold(32, "float32 roundoffs that what computes or merges a tensor leaves in it", _PAIRS)
    storage_roundoffs: float = threshold(2, "roundoffs that storing it in a coarser dtype leaves besides", _PAIRS)
    clearly_another_merge: float = threshold(0.5, "part of a right merge's error below which a wrong merge is what the port did", _ALONE)
    alike: float = threshold(0.9, "correlation above which a tensor's values are another's, changed", _PAIRS)
    convincing: float = threshold(6, "standard deviations of that correlation above which values alone pair two tensors", _ALONE)
    sampled: int = threshold(2048, "values of a tensor that are compared before all of them are", _WORK)
    sampled_rows: int = threshold(4, "rows sampled instead where the values do not lie in a row", _WORK)
    telling_rows: int = threshold(8, "rows from which on their signs tell a weight norm's direction", _ALONE)
    same_signs: float = threshold(0.9, "mean agreement of rows' signs above which they are the direction's", _ALONE)
    cut_layouts: int = threshold(4, "layouts of a block that are tried", _WORK)
    cut_axis_error: float = threshold(0.1, "relative L1 of axis vectors below which a layout keeps the axis of a cut", _ALONE)
    most_stacked: int = threshold(4096, "parts of a stacked tensor that are looked up", _WORK)
    most_in_module: int = threshold(64, "tensors of one module among which merged ones are looked for", _WORK)

    # -- names (renames, edits, rules) --

    words_in_likeness: float = threshold(0.75, "share of a likeness of names that the words have; the numbers have the rest", _PAIRS)
    longest_ending: int = threshold(6, "parts of a name, less one, that are taken as its ending", _WORK)
    endings_kept: int = threshold(3, "endings of the port that one ending may become", _WORK)
    clear_goal: float = threshold(0.6, "share of a goal above which a number seen only once does not divide a template", _ALONE)
    order_kept: float = threshold(0.5, "share of pairs above which numbers are taken to keep their order", _ALONE)
    most_edits: int = threshold(400, "edits of names that are looked for", _WORK)
    groups_edited: int = threshold(12, "groups of names for which an edit is tried at a time", _WORK)
    contexts_tried: int = threshold(24, "contexts in which an edit is tried", _WORK)
    most_axes_permuted: int = threshold(5, "axes of which all orders are tried for a rule", _WORK)

    # -- which tensors belong together (pairing) --

    most_fused: int = threshold(4, "tensors that one side may have fused to one", _WORK)
    least_likeness: float = threshold(0.4, "likeness of names from which on it places a tensor", _PAIRS)
    least_likeness_of_numbers: float = threshold(0.7, "the same for tensors of one value, whose shapes say nothing", _ALONE)
    most_assigned: int = threshold(562_500, "pairs of names that are weighed together; more are taken in order", _WORK)
    out_of_order: float = threshold(1e-4, "likeness that a pair loses by standing at opposite ends of two lists", _TIES)
    gain_of_parts: float = threshold(0.5, "part of the error of a composed tensor above which a single source loses to it", _ALONE)
    clearly_nearer: float = threshold(0.25, "part of the error by name below which another source's error outweighs the name", _ALONE)
    kind_elsewhere: float = threshold(0.5, "share of a template's pairs above which its kind goes where they went", _ALONE)

    # -- places and layouts (placement) --

    crossing: float = threshold(0.8, "by how much more alike exchanged names are than names that hold the values", _KINDS)
    crossed_parts: int = threshold(4, "last parts of names in which an exchange is looked for", _WORK)
    crossed_templates: int = threshold(32, "templates of a family that are compared with each other", _WORK)
    family_majority: float = threshold(0.5, "share of its nearest family above which a layout is the family's", _KINDS)
    wide_majority: float = threshold(0.9, "share of a wider family above which a layout is the family's", _KINDS)
    wide_votes: int = threshold(3, "tensors of a wider family that must have the layout", _KINDS)

    # -- what is wrong with values (findings) --

    few_values: int = threshold(16, "values below which a correlation or a share of equal values says nothing", _KINDS)
    significant: float = threshold(5.0, "standard deviations: a correlation below is that of independent values", _KINDS)
    related: float = threshold(0.5, "correlation below which values have nothing to do with the reference's", _KINDS)
    exact_misfit: float = threshold(2e-6, "relative misfit up to which a scale accounts for all of a difference in float32", _KINDS)
    scale_roundoffs: float = threshold(4, "the same misfit in roundoffs of a coarser dtype", _ALONE)
    scale_margin: float = threshold(4, "misfits by which a scale must differ from 1", _ALONE)
    exact_shift: float = threshold(1e-5, "relative misfit up to which a shift accounts for all of a difference in float32", _KINDS)
    shift_roundoffs: float = threshold(8, "the same misfit in roundoffs of a coarser dtype", _ALONE)
    shift_leaves: float = threshold(0.1, "share of a difference that a shift may leave and still be the whole of it", _KINDS)
    least_shifted: int = threshold(3, "values from which on a shift is told from chance", _ALONE)
    rounding_error: float = threshold(0.1, "relative L2 above which no rounding is looked for", _ALONE)
    grid_correlation: float = threshold(0.9, "correlation above which values are looked at as cut off to a coarser dtype", _ALONE)
    grid_roundoffs: float = threshold(3, "roundoffs of that dtype below which the error must be", _ALONE)
    least_rounding: float = threshold(0.3, "roundoffs from which on an error is of rounding's size, by sketch", _SKETCHES)
    most_rounding: float = threshold(1.2, "roundoffs up to which an error is of rounding's size, by sketch", _SKETCHES)
    widest_group: float = threshold(
        10.0, "range of a quantised group in parts of its root mean square, up to which codes explain the error", _CODES
    )
    quantised_correlation: float = threshold(0.95, "correlation from which on few distinct values are a quantisation", _KINDS)
    quantised_error: float = threshold(1e-6, "relative L2 from which on they are", _KINDS)
    smallest_group: int = threshold(32, "values of the smallest group that is looked at", _ALONE)
    most_levels: int = threshold(257, "distinct values of a group up to which it is quantised", "set by hand: 8 bits and a zero")
    more_levels: float = threshold(1.5, "times as many levels that the reference must have", _ALONE)
    sampled_group_rows: int = threshold(16, "rows of a tensor in which groups are counted, at least", _WORK)
    sampled_groups: int = threshold(64, "groups of which the levels are counted", _WORK)
    partly_equal: float = threshold(0.02, "share of equal values above which the others were overwritten", _KINDS)
    small_error: float = threshold(1e-3, "relative L2 up to which a difference is called small", _WORDING)
    permuted_equal: float = threshold(0.9, "share of equal values above which no other order is looked for", _ALONE)
    permuted_norm: float = threshold(1e-5, "relative difference of norms up to which values may be the same in another order", _ALONE)
    merged_rtol: float = threshold(1e-5, "relative error that a merge in another precision may leave in a value", _ALONE)
    merged_atol: float = threshold(1e-12, "absolute error that it may leave", _ALONE)
    permuted_distance: float = threshold(
        1e-2, "relative L2 of axis vectors from which on equal statistics are those of another order", _ALONE
    )
    permuted_rows: int = threshold(1 << 16, "rows whose order is looked for", _WORK)
    permuted_axes: int = threshold(4, "axes of which all orders are tried", _WORK)
    permuted_sample: int = threshold(64, "values that are compared before all of them are", _WORK)
    grid_sample: int = threshold(8, "rows that are rounded before all of them are", _WORK)

    # -- what a fresh initialisation looks like (findings) --

    fresh_values: int = threshold(64, "values from which on statistics tell an initialisation", _KINDS)
    fresh_mean: float = threshold(6, "standard errors of the mean up to which it is 0", _ALONE)
    uniform_std: float = threshold(0.02, "by how much std / bound may differ from a uniform distribution's", _ALONE)
    uniform_std_errors: float = threshold(0.5, "and by how many times 1 / sqrt(count) besides", _ALONE)
    bound_lacking: float = threshold(8, "expected gaps between values by which the largest may stay below the bound", _ALONE)
    bound_slack: float = threshold(1e-9, "absolute rounding of that bound", _ALONE)
    bound_excess: float = threshold(1e-6, "relative rounding by which the largest value may exceed it", _ALONE)
    fresh_alone: int = threshold(256, "values from which on one side alone tells an initialisation", _ALONE)
    fresh_share: float = threshold(0.25, "share of a run's parameters up to which those that look initialised are said to be", _ALONE)
    normal_errors: float = threshold(4, "times 1 / sqrt(count) by which std and mean of abs may differ from a unit normal's", _ALONE)

    # -- what need not be there (diagnosis) --

    mask_error: float = threshold(0.5, "by how much a count of ones may differ from the sum of a mask", _ALONE)
    shortest_table: int = threshold(4, "entries of the shortest vector that is taken for a computed table", _ALONE)
    longest_table: int = threshold(1 << 16, "entries of the longest", _WORK)
    even_steps: float = threshold(1e-4, "relative spread of steps or ratios up to which they are equal", _ALONE)

    # -- how findings are grouped (result) --

    least_module: int = threshold(3, "tensors that a module must have to be named as a whole", _WORDING)
    most_lines: int = threshold(3, "findings that are no fault and are named one by one", _WORDING)

    # -- how sure a finding is --

    sure_rounded: float = threshold(0.99, "values rounded to a dtype", _CONFIDENCE)
    sure_reference_rounded: float = threshold(0.95, "the reference holds the port's values rounded", _CONFIDENCE)
    sure_cut_off: float = threshold(0.93, "values cut off to a coarser dtype", _CONFIDENCE)
    sure_rounded_by_sketch: float = threshold(0.9, "values rounded, known by sketch", _CONFIDENCE)
    sure_constant: float = threshold(0.97, "all values zero, one or another constant", _CONFIDENCE)
    sure_constant_few: float = threshold(0.8, "the same of few values", _CONFIDENCE)
    constant_values: int = threshold(4, "values from which on a constant is not chance", _CONFIDENCE)
    sure_scaled: float = threshold(0.97, "values scaled", _CONFIDENCE)
    sure_shifted: float = threshold(0.95, "values shifted", _CONFIDENCE)
    sure_packed: float = threshold(0.95, "an error of the size of the module's codes", _CONFIDENCE)
    sure_quantised: float = threshold(0.95, "few distinct values in each group", _CONFIDENCE)
    sure_partly: float = threshold(0.85, "partly other values", _CONFIDENCE)
    sure_not_finite: float = threshold(0.9, "values finite on one side only", _CONFIDENCE)
    sure_other_few: float = threshold(0.6, "other values, of few", _CONFIDENCE)
    sure_other: float = threshold(0.8, "other values", _CONFIDENCE)
    sure_unloaded: float = threshold(0.97, "never loaded", _CONFIDENCE)
    sure_unloaded_few: float = threshold(0.85, "never loaded, of few values", _CONFIDENCE)
    unloaded_values: int = threshold(64, "values from which on the missing correlation is sure", _CONFIDENCE)
    surer_fresh: float = threshold(0.02, "added where the values look freshly initialised", _CONFIDENCE)
    surest: float = threshold(0.99, "what no confidence that something was added to exceeds", _CONFIDENCE)
    sure_reshaped: float = threshold(0.95, "reshaped where a transpose was meant", _CONFIDENCE)
    sure_row_order: float = threshold(0.95, "rows in another order", _CONFIDENCE)
    sure_order_by_sketch: float = threshold(0.9, "the same values in another order, by their statistics", _CONFIDENCE)
    sure_any_order: float = threshold(0.8, "the same values in an order that no permutation of axes gives", _CONFIDENCE)
    sure_exchanged: float = threshold(0.97, "two tensors exchanged", _CONFIDENCE)
    sure_copied: float = threshold(0.95, "one tensor loaded twice", _CONFIDENCE)
    sure_other_tensor: float = threshold(0.9, "the values of another tensor", _CONFIDENCE)
    uniform_exchange: float = threshold(0.85, "factor where all of a kind are exchanged, and only names speak against it", _CONFIDENCE)
    sure_layout_of_siblings: float = threshold(0.96, "a layout against that of several siblings", _CONFIDENCE)
    sure_layout: float = threshold(0.85, "a layout against that of one sibling or of a wider family", _CONFIDENCE)
    sure_wrong_rows: float = threshold(0.85, "a weight norm whose rows have a wrong scale", _CONFIDENCE)
    sure_wrong_merge: float = threshold(0.97, "a weight norm merged wrongly, by value", _CONFIDENCE)
    sure_other_shape: float = threshold(0.95, "another shape", _CONFIDENCE)
    sure_missing: float = threshold(0.9, "no place in the port", _CONFIDENCE)
    sure_with_siblings: float = threshold(0.8, "too few values to tell, in a module that was not loaded", _CONFIDENCE)
    sure_name: float = threshold(1.0, "factor of a place known by its own name", _CONFIDENCE)
    sure_rename: float = threshold(0.98, "factor of a place known by the renaming of siblings", _CONFIDENCE)
    sure_likeness: float = threshold(0.75, "factor of a place known by likeness of names", _CONFIDENCE)
    surer_by_checkpoint: float = threshold(0.02, "added where the checkpoint says which side is wrong", _CONFIDENCE)


THRESHOLDS = ParameterThresholds()
