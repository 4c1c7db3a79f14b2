"""Stage `heal`: train the candidate with LoRA and merge the adapter.

A run that was stopped continues from its newest checkpoint in its run folder, and a finished run is
not repeated.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from prunesearch import events
from prunesearch.candidate import LayerSubset
from prunesearch.config.recovery import HealRecipe
from prunesearch.pipeline.data_checks import check_recovery
from prunesearch.pipeline.stages.base import Stage
from prunesearch.pipeline.state import Request, Resources, State
from prunesearch.recovery.healing import ask_teacher, carry_out, held_out_loss
from prunesearch.recovery.run_folder import RUN_FOLDERS, Healed
from prunesearch.report.results import HealedReport
from prunesearch.units import noun_for
from prunesearch.widths.layer_widths import described


def heal_candidate(state: State) -> State:
    """Heal the selected candidate in place."""
    candidate, recipe, training = state.choice.candidate, state.heal_recipe, state.request.training
    assert recipe is not None
    planned = state.resources.plan(candidate, recipe)
    # Measure the dense and the pruned model before any weight is trained.
    with with_dense_weights(state.resources):
        ask_teacher(planned, state.request.references)
        dense = held_out_loss(planned, LayerSubset.of(candidate.n_layers))
        pruned = held_out_loss(planned, candidate)
    # Train, or find the result of a finished run.
    run_folder = training.run_folder or RUN_FOLDERS / planned.digest[:16]
    steps = f"{recipe.steps} {noun_for(recipe.steps, 'step')}"
    line = f"healing the model {described(candidate.text)}: {steps} at most"
    events.tell(events.Message(line))
    healed = carry_out(planned, run_folder, state.request.references, training.checkpointing)
    state = replace(state, changed=(*state.changed, "healed"))
    return state.with_recovery(
        recipe=portable_recipe(recipe),
        losses={"dense": dense, "pruned": pruned},
        work=str(run_folder),
        healed=healed_report(healed),
    )


def healed_report(healed: Healed) -> HealedReport:
    """Return the report of a healing."""
    return HealedReport(**vars(healed), before=healed.before, after=healed.after)


def portable_recipe(recipe: HealRecipe) -> HealRecipe:
    """Return a recipe without the folders of this machine."""
    return recipe.model_copy(update=recipe.portable())


@contextmanager
def with_dense_weights(resources: Resources) -> Iterator[None]:
    """Have the dense weights in the model inside the ``with`` block, without the compensation."""
    if resources.compensation is None:
        yield
        return
    with resources.compensation.suspended():
        yield


def check(request: Request) -> None:
    """Refuse texts of the recovery that cannot be read, before anything is loaded or searched."""
    check_recovery(request.recovery)


def wanted(state: State) -> bool:
    """Return whether the candidate is to be healed."""
    return state.heal_recipe is not None and state.earlier is None


HEAL = Stage("heal", heal_candidate, check, wanted)
