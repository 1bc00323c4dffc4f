"""The catalogue of causes: one row a kind, with its meaning, its evidence, its remedy, a scene in which it is named and a look-alike.

`docs/causes.md` is made of it: ``python -m tracediff.causes.catalogue`` prints the page, and with ``--check FILE`` or ``--write FILE``
compares or replaces a file. `tests/cause_scenes.py` holds the scene and the look-alike of each kind as arrays or runs.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from pathlib import Path

from tracediff.causes.thresholds import THRESHOLDS
from tracediff.replay.functions import FUNCTIONS


class Gravity(IntEnum):
    """When a kind speaks. Among kinds of one gravity the confirmed ones speak first, then the more likely."""

    BEFORE_ALL = 0
    """Before all other kinds, however sure those are: the stored parameters show it without a run."""
    BY_EVIDENCE = 1
    """As its evidence deserves."""
    GIVING_WAY = 2
    """As its evidence deserves; where the same evidence also fits a kind of lower gravity, that kind speaks alone."""


class Proof(StrEnum):
    """What it means that a cause of a kind is confirmed."""

    EDIT = "the edit, applied to the reference's values, gives the port's, and a null edit of the same freedom does not"
    LAYER = (
        "the reference's recorded operations, or its layer, computed again with the port's parameter, give the port's output "
        "(`--save-params` of the port)"
    )
    RECORD = "the records themselves hold it"
    NONE = "never; it is a likelihood"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of cause.

    ``name``: the stable word in reports. ``meaning``: what it says of the port. ``found``: on which evidence it is named. ``remedy``: what
    the porter should do next. ``scene``: a situation in which it must be named. ``look_alike``: a similar one in which it must not.
    ``proof``: when it is confirmed.
    """

    name: str
    meaning: str
    found: str
    remedy: str
    scene: str
    look_alike: str
    gravity: Gravity = Gravity.BY_EVIDENCE
    proof: Proof = Proof.EDIT


KINDS = (
    # ------------------------------------------------------------------------------------------------------------- weights
    Kind(
        "weights.unloaded",
        "A parameter of the culprit was never loaded.",
        "The port's values have nothing to do with the reference's; often they look like a fresh initialisation.",
        "Look for the parameter's name in the conversion and in the port's loader; make the loader refuse names that it does not know.",
        "One layer's weight holds fresh random values.",
        "One layer's weight is half the reference's: that is `weights.value`.",
        Gravity.BEFORE_ALL,
        Proof.LAYER,
    ),
    Kind(
        "weights.missing_bias",
        "A bias is zero or absent in the port.",
        "The port's bias is all zero, or the port holds none, and the reference's is not zero.",
        "Give the port's layer a bias (`bias=True`) and convert the reference's.",
        "One layer's bias is all zero in the port.",
        "The bias is all zero on both sides.",
        Gravity.BEFORE_ALL,
        Proof.LAYER,
    ),
    Kind(
        "weights.swapped",
        "A parameter holds the values of another one.",
        "The port's values equal another parameter of the reference.",
        "Correct the two names in the conversion.",
        "Two layers of one shape have exchanged their weights.",
        "Two layers share one weight on both sides.",
        Gravity.BEFORE_ALL,
        Proof.LAYER,
    ),
    Kind(
        "weights.layout",
        "A parameter has the right values in the wrong places.",
        "The port's values equal the reference's after a transposition, a reshape or another order of rows.",
        "Apply the permutation that the evidence names when converting.",
        "One square weight is transposed, its siblings are not.",
        "All convolution weights are stored channels-last, as the port's framework wants them.",
        Gravity.BEFORE_ALL,
        Proof.LAYER,
    ),
    Kind(
        "weights.value",
        "A parameter has other values.",
        "The port's values are the reference's scaled, shifted or partly overwritten, or resemble them without a rule.",
        "Undo the scale or shift that the evidence names, or convert the parameter anew from the same checkpoint.",
        "One layer's weight is half the reference's.",
        "One layer's weight is rounded to bfloat16: that is `weights.precision`.",
        Gravity.BEFORE_ALL,
        Proof.LAYER,
    ),
    Kind(
        "weights.precision",
        "A parameter was rounded or quantised.",
        "The port's values are the reference's rounded to a coarser dtype, or numbers of a coarse grid.",
        "Convert the parameter in the reference's dtype, or compare with a reference in the port's.",
        "One layer's weight is rounded to bfloat16 in a float32 port.",
        "All of the port's weights are bfloat16: its own choice, which is expected.",
        Gravity.BEFORE_ALL,
        Proof.LAYER,
    ),
    # ------------------------------------------------------------------------------------------------------- normalisation
    Kind(
        "norm.eps",
        "A normalisation has another epsilon.",
        "Gain and offset are fitted on the reference, epsilon on the port; or the two modules' attributes or arguments differ.",
        "Pass the reference's epsilon to the port's layer.",
        "A layer norm with epsilon 1e-2 in the place of 1e-5.",
        "The same layer norm with one factor on its output: that is `scale`.",
    ),
    Kind(
        "norm.missing",
        "Something is not normalised, or over other statistics.",
        "The port's output is its input, or fits the norm without its statistics; or only the reference calls the norm.",
        "Call the norm, of the reference's type, over the reference's axes.",
        "The port hands on what a layer norm was given.",
        "A layer norm with another epsilon: that is `norm.eps`.",
    ),
    Kind(
        "norm.placement",
        "A norm stands before a layer instead of behind it, or the other way round.",
        "Both sides call the same modules, a norm in another place, in calls that correspond.",
        "Call the norm where the reference's code does.",
        "The reference calls norm and MLP, the port MLP and norm.",
        "Both sides call norm and MLP in one order, and the values differ.",
        proof=Proof.NONE,
    ),
    # --------------------------------------------------------------------------------------------------------------- sums
    Kind(
        "residual.missing",
        "The stream past a branch is not added.",
        "The difference is -1 times an input in hand.",
        "Return `x + branch(x)`.",
        "The reference returns x + mlp(x), the port mlp(x).",
        "The port returns x: that is `branch.missing`.",
    ),
    Kind(
        "branch.missing",
        "A branch, a layer or a factor is left out.",
        "The difference is -1 times something that the code computed; or only the reference calls a module; or a formula lost a factor.",
        "Call the module that the evidence names and use what it returns.",
        "The reference returns x + mlp(x), the port x.",
        "The port returns mlp(x): that is `residual.missing`.",
        Gravity.GIVING_WAY,
    ),
    Kind(
        "branch.extra",
        "Something is added, applied or called once too often.",
        "The difference is +1 times a tensor in hand; or the port calls a module more often.",
        "Remove the second use that the evidence names.",
        "The port returns x + 2 * mlp(x) in the place of x + mlp(x).",
        "The port returns x + 1.5 * mlp(x): that is `scale`.",
    ),
    Kind(
        "position.missing",
        "Positions are not added.",
        "The difference is -1 times what an embedding of positions gave; or only the reference calls that embedding.",
        "Add the positional embedding where the reference does.",
        "What an Embedding returned is not added to the tokens.",
        "What a Linear returned is not added to the tokens: that is `branch.missing`.",
    ),
    Kind(
        "scale",
        "Another factor.",
        "The port is a multiple of the reference; or one coefficient of a sum differs; or attention fits with another scale.",
        "Compare the factor in the evidence with the reference's code: a scale, a gain, a `1 +`, a square root of the width.",
        "The port's values are four times the reference's.",
        "The port's values are the reference's divided by ln 10: that is `units.log`.",
    ),
    Kind(
        "cfg.formula",
        "Guidance combines its conditional and unconditional parts otherwise.",
        "Both tensors are sums of the parts of one batch, and the coefficients differ; or the unconditional half is given the condition.",
        "Write the guidance with the coefficients that the evidence gives for the reference; check which half of the batch is which.",
        "1.7 c - 0.7 u in the reference, 0.7 c + 0.3 u in the port.",
        "x + 0.7 y of two unrelated tensors, 0.6 x + 0.2 y in the port: that is `scale`.",
    ),
    Kind(
        "ode.schedule",
        "A solver takes steps of another size, or other times.",
        "In a loop, the coefficient of what is added to the state differs; or two rows of times run otherwise.",
        "Compare the schedule's formula and the number of its points with the reference's.",
        "A step of 0.2 in the place of 0.1.",
        "A step of -0.1 in the place of 0.1: that is `ode.sign`.",
    ),
    Kind(
        "ode.sign",
        "A solver's step goes the other way.",
        "In a loop, the coefficient of what is added to the state has the other sign.",
        "Exchange the two times that are subtracted, or the sign of the velocity.",
        "A step of -0.1 in the place of 0.1.",
        "A step of 0.2 in the place of 0.1: that is `ode.schedule`.",
    ),
    # ------------------------------------------------------------------------------------------- functions of single values
    Kind(
        "activation",
        "Another function, slope or approximation.",
        "Both sides are fitted by known functions, of a tensor or of a gate; or attributes of the two modules differ.",
        "Use the reference's function, with its slope or its `approximate`.",
        "GELU in the reference, SiLU in the port.",
        "SiLU in the reference, 0.9 times it in the port: that is `scale`.",
    ),
    Kind(
        "clamp",
        "One side clips values to a range.",
        "All values beyond two limits are at the limits; confirmed where it is the port that clips.",
        "Add or remove the clipping at the limits that the evidence names.",
        "The port clips the reference's values to -1 and 1.",
        "The port applies tanh: that is `activation`.",
    ),
    Kind(
        "units.log",
        "Another logarithm.",
        "A factor of ln 10, ln 2 or 20/ln 10; or log for exp.",
        "Use the reference's logarithm (natural, base 10 or dB).",
        "The port's values are the reference's divided by ln 10.",
        "The port's values are the reference's divided by 2.2: that is `scale`.",
    ),
    Kind(
        "transform",
        "Another reduction, axis, interpolation or view of the right tensor.",
        "The formulas of the two sides differ in what they make of one tensor in hand.",
        "Compare the operation that the evidence names: mean, max or one place, along which axis, nearest or linear.",
        "The reference takes the mean along the last axis, the port the largest value.",
        "The reference takes the last place of the axis, the port the first: that is `position.offset`.",
    ),
    # ---------------------------------------------------------------------------------------------------------- attention
    Kind(
        "mask.missing",
        "A mask is not applied.",
        "Attention computed again without its mask gives the port's output; or the port masks nothing where the reference does.",
        "Hand the mask to the port's attention, or multiply by it where the reference does.",
        "Attention without its causal mask.",
        "Attention with another scale: that is `scale`.",
    ),
    Kind(
        "mask.wrong",
        "A mask hides the wrong places.",
        "Attention computed again with the mask inverted, shifted, transposed or causal fits; or the two masks differ.",
        "Compare the mask's convention (True keeps or True hides) and its offset with the reference's.",
        "A causal mask where the reference has none.",
        "Attention without its mask: that is `mask.missing`.",
    ),
    Kind(
        "heads.layout",
        "Heads are reshaped where a transposition was meant, or the softmax of attention or the groups of keys run otherwise.",
        "The port has the same values after one reshape and transposition; or attention computed again over the other axis fits.",
        "Transpose between reshapes: (B, T, H * D) to (B, T, H, D) to (B, H, T, D).",
        "(B, H, T, D) is reshaped to (B, T, H * D) without a transposition.",
        "The channels of each head stand in another order: that is `order.channels`.",
    ),
    Kind(
        "rope.missing",
        "Rotary positions are not applied.",
        "The port's queries or keys are those before the rotation.",
        "Rotate queries and keys before the attention.",
        "The port's queries are not rotated.",
        "The port's queries are rotated with another base: that is `rope.variant`.",
    ),
    Kind(
        "rope.variant",
        "Rotary positions of another kind: pairs, base, ramp, direction or number of channels.",
        "The angle by which each pair of channels was turned differs between the sides; or attributes of the two modules differ.",
        "Compare `traditional`, the base and the rotated width with the reference's.",
        "The port turns neighbouring channels, the reference halves.",
        "The port turns each position as the next one: that is `position.offset`.",
    ),
    Kind(
        "position.offset",
        "Positions are shifted.",
        "Numbers plus a constant; rotations of another position; an embedding's rows shifted; another place of an axis.",
        "Compare where counting starts, with and without a cache.",
        "The port's numbers are the reference's plus one.",
        "The port's numbers are the reference's in reverse: that is `order.reversed`.",
    ),
    Kind(
        "time.scale",
        "Times in other units.",
        "The sinusoidal form that fits each side has another factor; or the times are multiples.",
        "Multiply the times as the reference does, often by 1000.",
        "The reference embeds 1000 t, the port t.",
        "The port puts cosine before sine: that is `order.concat`.",
    ),
    # -------------------------------------------------------------------------------------------------------------- order
    Kind(
        "order.concat",
        "Parts are joined in another order.",
        "Halves, thirds or quarters exchanged; the last slices first; sine and cosine exchanged.",
        "Join the parts in the reference's order.",
        "The two halves of the channels are exchanged.",
        "The channels stand in a random order: that is `order.channels`.",
    ),
    Kind(
        "order.channels",
        "Channels stand in another order.",
        "Each slice of the channel axis is found at another place.",
        "Compare how the channels are interleaved or grouped with the reference's.",
        "The channels stand in a random order.",
        "The channels stand in reverse: that is `order.reversed`.",
    ),
    Kind(
        "order.reversed",
        "An axis is reversed.",
        "The port is the reference flipped along an axis.",
        "Flip the axis, or do not.",
        "The positions stand in reverse.",
        "The two halves of the channels are exchanged: that is `order.concat`.",
    ),
    Kind(
        "order.roles",
        "One tensor is used in the place of another.",
        "The port has here what the reference has somewhere else in hand; or two factors of a formula are exchanged.",
        "Compare the order of arguments, or of the parts after a split, with the reference's.",
        "The port hands over its keys as queries.",
        "The port hands over values that occur nowhere in the reference.",
    ),
    Kind(
        "padding.shift",
        "Values stand some places to the side: padding on the other side, another stride, or one step more.",
        "The inside agrees after a shift; or paddings, strides or dilations of the two modules differ.",
        "Compare how much is padded in front and behind.",
        "All positions stand one place later, with zeros in front.",
        "The same shift of what an embedding of positions gave: that is `position.offset`.",
    ),
    Kind(
        "padding.mode",
        "Another padding at the borders.",
        "Only the ends of an axis of a convolution differ; or zeros, edges and reflections are told apart.",
        "Use the reference's padding mode.",
        "Only the first two of a convolution's 40 places differ.",
        "The same difference in the output of a Linear.",
    ),
    # ------------------------------------------------------------------------------------------------- numbers and runs
    Kind(
        "dropout",
        "Values are dropped.",
        "Some values are 0 and the others larger by 1/(1-p), p being their share up to chance.",
        "Call `eval()` on the port.",
        "One in ten values is 0, the others are divided by 0.9.",
        "A mask sets half of the values to 0 and leaves the others as they are.",
    ),
    Kind(
        "mode.train",
        "The port is in training mode.",
        "A module that works otherwise in training is in training mode on the port's side only.",
        "Call `eval()` on the port.",
        "The port's batch norm is in training mode, the reference's is not.",
        "Both batch norms are in training mode.",
    ),
    Kind(
        "random",
        "Random numbers differ.",
        "The port does not repeat itself; or both sides have standard normal numbers without a correlation; or their draws differ.",
        "Play the reference's draws back (`--random`), or seed both sides.",
        "Two independent rows of standard normal numbers.",
        "SiLU of two independent rows of standard normal numbers.",
        proof=Proof.RECORD,
    ),
    Kind(
        "precision",
        "A coarser dtype, or products of coarser numbers (TF32).",
        "The port's values are numbers of a coarser dtype than its run's, the reference's are not; or products of operands that are cut to "
        "10 or 7 bits of mantissa give them. It is likely where what was multiplied was not kept, and all that multiplies is off as much "
        "as such products are.",
        "Compute in the reference's dtype here; of products: `--precise`, or a floor in `tf32`.",
        "The port's values are bfloat16 numbers in a float32 run.",
        "Both sides' values are bfloat16 numbers.",
    ),
    Kind(
        "cache",
        "Keys and values of earlier calls were not kept.",
        "In a later call the port's attention is handed a shorter or longer row of keys than the reference's.",
        "Append to the cache before the attention, and start it empty.",
        "In its fourth call the port attends to one position, the reference to nine.",
        "The same lengths in the first call: that is `length`.",
        proof=Proof.NONE,
    ),
    Kind(
        "length",
        "Shapes that no layout reconciles.",
        "The shapes of the pair differ.",
        "Compare the paddings, strides and slices before this site.",
        "The port returns five rows, the reference six.",
        "The port returns six other rows.",
        proof=Proof.NONE,
    ),
    Kind(
        "nonfinite",
        "NaN or infinity on one side only.",
        "The counts of NaN and infinite values.",
        "Look at divisions, logarithms and square roots in the culprit, and at its dtype.",
        "Some of the port's values are NaN.",
        "Some of the reference's values are -inf, which masks: that is `mask.missing`.",
        proof=Proof.RECORD,
    ),
    Kind(
        "raised",
        "One side's code raised an exception.",
        "The recorded exception, where it was raised, and the shapes and dtypes of what the call was handed.",
        "Mend the exception first: what follows it was not computed by the port.",
        "A layer of the port raises.",
        "A layer of the port returns another shape: that is `length`.",
        proof=Proof.RECORD,
    ),
    Kind(
        "input",
        "The two runs were given different inputs.",
        "A divergence before any module or function had returned anything, on either side.",
        "Feed both sides the same arrays: save the reference's preprocessed inputs.",
        "The port is fed the rows in reverse.",
        "The first layer of the port computes other values.",
        proof=Proof.RECORD,
    ),
)

CATALOGUE = {kind.name: kind for kind in KINDS}


def gravest(kinds: list[str]) -> str:
    """Of the kinds that one piece of evidence fits, the first of the lowest gravity."""
    return min(kinds, key=lambda name: CATALOGUE[name].gravity)


# ------------------------------------------------------------------------------------------------------------------------ page

_INTRODUCTION = """\
# Causes

Generated from the catalogue: `python -m tracediff.causes.catalogue --write docs/causes.md` writes it anew.

A divergence is explained from the two traces alone. Each detector takes the tensors that the code had in hand, applies one change to
what the reference does with them, and predicts values. The cause is *confirmed* where three things hold:

1. what the change starts from gives the reference's tensor;
2. the changed form gives the port's (less than {reproduced:.0%} of the difference, or no more than noise, is left);
3. a null edit of the same freedom does not: the same search, with all that it fits and tries, is shown the reference plus a random error as
   large as the port's, once with its values in other places and signs, once with its spectrum, and explains neither.

A cause that rests on something else (an attribute, the order of calls, where the error lies) is a likelihood, and never confirmed. Where
nothing has evidence the report says "cause unknown". Where the reference is in training mode no function is read into its values.

A wrong parameter is a cause only of what its module, or code around it, computes with it, and only where it differs by at least
1/{amplification:.0f} of the error's relative size. Parameters that differ by no more than rounding are equal.

Causes that the weights show come first, then confirmed ones, then the more likely. How often a stated confidence is right is measured:
[performance](performance.md#confidence) has the table.
"""
_CLOSING = """\
## How operations are changed

The capture of a PyTorch reference writes down which operations it computes, and the line of code that asks for each. For a divergence these
operations are computed again in float64, from the tensors that both sides have to the one that differs, with one of them changed: a term,
a factor, a function, a mask or a norm left out, also several in a row; another function, reduction, axis, denominator, epsilon, convention
of groups, order, part, view, place, padding or enlargement; coordinates laid from corner to corner or in the middles of pixels, a table
resampled by another filter, frequencies of another base; a mask inverted, moved or one place wider; rotary positions of neighbouring
channels; a function that the reference does not apply; another tensor in the place of one; rounding; last each number fitted to the port.
What one line asks for in every turn of a loop is changed in every turn. The first change that gives the port's tensor is the cause, with
its line. Operations of more than {most_operations} in a row, or without arithmetic here, are not looked at.

## How formulas are found

Where nothing else is sure, a short formula is looked for: the reference as a multiple of one tensor in hand, or of a product of two, each
after one of {functions} functions, plus at most two more. Tensors are taken whole, in halves and thirds, at the first or last place of an
axis, reduced along axes, normalised, padded, or enlarged. The port's formula is the one that differs least from the reference's; what
differs is the cause: another function (`activation`), exchanged gate and value or another tensor (`order.roles`), a factor left out
(`branch.missing`, `mask.missing`), a modulation without its ``1 +`` (`scale`), another reduction or interpolation (`transform`), another
padding (`padding.mode`, `padding.shift`), softmax along another axis (`transform`; of attention `heads.layout`).

Attention that a module's own code writes out is computed again from its projections, as an attention call is.

Detectors see every divergence of a report, at the first of its places, tensors of up to {largest:.0f} million values, and the latest
{latest_in_hand} tensors in hand. A formula is looked for at the first {formulas_searched} divergences that no detector is sure of.
"""


def page() -> str:
    """The documentation of all kinds, as Markdown."""
    introduction = _INTRODUCTION.format(reproduced=THRESHOLDS.reproduced, amplification=THRESHOLDS.amplification)
    closing = _CLOSING.format(
        functions=len(FUNCTIONS),
        most_operations=THRESHOLDS.most_operations,
        formulas_searched=THRESHOLDS.formulas_searched,
        largest=THRESHOLDS.largest_tensor / 1e6 // 1,
        latest_in_hand=THRESHOLDS.latest_in_hand,
    )
    table = "\n".join(["| kind | what it means |", "|---|---|", *(f"| `{kind.name}` | {kind.meaning} |" for kind in KINDS)])
    return "\n".join([introduction, table, "", *map(_section, KINDS), closing])


def _section(kind: Kind) -> str:
    return f"""\
## `{kind.name}`

{kind.meaning}

- Found: {kind.found}
- Confirmed: {kind.proof}.
- What to do: {kind.remedy}
- Named here: {kind.scene}
- Not named here: {kind.look_alike}
"""


def main(arguments: list[str]) -> int:
    """Prints the page, or compares or replaces a file with it; returns the exit status, 1 where a compared file is stale."""
    match arguments:
        case []:
            print(page(), end="")
        case ["--write", path]:
            Path(path).write_text(page(), encoding="utf-8")
        case ["--check", path]:
            if Path(path).read_text(encoding="utf-8") != page():
                print(f"{path} is stale; write it anew: python -m tracediff.causes.catalogue --write {path}", file=sys.stderr)
                return 1
        case _:
            print("usage: python -m tracediff.causes.catalogue [--write FILE | --check FILE]", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
