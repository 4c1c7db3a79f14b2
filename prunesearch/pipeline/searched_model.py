"""The model and the data of an earlier study, from wherever they are now."""

from optuna.study import Study

from prunesearch.config.model import ModelSection
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.errors import ModelError, StudyError
from prunesearch.models.loading import LoadedModel
from prunesearch.objectives.base import Objective
from prunesearch.pipeline.session import load_for
from prunesearch.studies import study_recipe


def load_searched(
    study: Study, recipe: Recipe, model: ModelSection, options: RunOptions, named: bool
) -> LoadedModel:
    """Load the model of a study.

    Args:
        study: the study.
        recipe: its recipe, with the present path of the model.
        model: names the model.
        options: how it is loaded.
        named: whether the user named the path.

    Raises:
        ModelError: the model cannot be loaded.
        StudyError: it is not the one that was searched.
    """
    name = study.study_name
    try:
        loaded = load_for(model, options)
    except ModelError as error:
        hint = ""
        if not named:
            hint = f"; if it lies elsewhere, give `model` PATH: study {name!r} knows its content"
        raise ModelError(f"{error}{hint}") from None
    check_searched(study, recipe, loaded)
    return loaded


def check_searched(study: Study, recipe: Recipe, loaded: LoadedModel) -> None:
    """Refuse a model that is not the one that a study searched.

    Raises:
        StudyError: its weights differ.
    """
    name, searched = study.study_name, study_recipe.identity_of(study)["model content"]
    if loaded.fingerprint != searched:
        raise StudyError(
            f"model {recipe.model.path!r} is not the one that study {name!r} searched: its weights "
            f"differ (fingerprint {loaded.fingerprint[:12]}, searched was {str(searched)[:12]}): "
            f"give `model` PATH of that one, or search this one with `study` NAME"
        )


def check_searched_data(study: Study, recipe: Recipe, objective: Objective) -> None:
    """Refuse data that are not those that a study searched on.

    Args:
        study: the study.
        recipe: its recipe, with the present paths of the data.
        objective: objective on the data of these paths.

    Raises:
        StudyError: their content differs.
    """
    searched = study_recipe.identity_of(study).get("data content")
    if objective.digest != searched:
        source = recipe.data.task_data or recipe.objective.task or recipe.data.calibration
        raise StudyError(
            f"the data of {source!r} are not those that study {study.study_name!r} searched on: "
            "their content differs: give `calibration` or `task_data` of those, or search again"
        )
