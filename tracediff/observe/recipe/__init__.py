"""Recipes: the files in ``hooks/`` that load, feed and run one side of a pair, here or in that stack's own Python.

A recipe is one ordinary Python file per model and side, ``hooks/NAME_torch.py`` and ``hooks/NAME_mlx.py``:

    '''My model in PyTorch, the reference.'''          # its first line describes it
    IMPL = "torch"                                      # which framework
    REQUIRES = ["torch>=2.6"]                           # what to install, shown where an import fails
    STAGES = {"encoder": "The encoder", ...}            # the parts that have a verdict each, in order
    METHODS = ["model.encoder:encode"]                  # methods to observe besides modules (optional); also FUNCTIONS
    SOURCES = {"decoder": {"x": "model.decoder/input[0]"}}   # where a whole run is given a stage's inputs (optional), for --from
    TOKENIZERS = {"model.embed": "tokenizer.json"}      # whose texts the ids at these sites stand for (optional)
    def load(context): return {"model": ...}            # named roots; the names begin the module paths
    def run(models, context): ...                       # runs the stages, each in `with td.stage(name)`

It may import files beside it, at its top. `Context` gives it the seed's weights, inputs and draws, or those of a reference trace.

`finding` says which file is meant, `loading` imports and checks it, `running` runs it, `continue_stages` after a stage that fails too.
"""

from tracediff.observe.context import Context
from tracediff.observe.recipe.finding import find_recipe, folders, known_recipes
from tracediff.observe.recipe.loading import Recipe, check_stages, importable, load_faults, load_file, load_recipe
from tracediff.observe.recipe.running import load_quietly, observe_recipe, rerun_recipe, run_recipe
from tracediff.observe.recipe_template import write_recipes

__all__ = [
    "Context",
    "Recipe",
    "check_stages",
    "find_recipe",
    "folders",
    "importable",
    "known_recipes",
    "load_faults",
    "load_file",
    "load_quietly",
    "load_recipe",
    "observe_recipe",
    "rerun_recipe",
    "run_recipe",
    "write_recipes",
]
