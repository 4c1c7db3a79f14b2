"""The recipe and the identity that are stored in a study, and its comparison with others."""

import hashlib
import json

from optuna.study import Study

from prunesearch.config.identity import VERSION, advice, differences
from prunesearch.config.recipe import Recipe
from prunesearch.errors import StudyError
from prunesearch.runtime.json_values import JsonObject, as_object

RECIPE_ATTR = "recipe"
IDENTITY_ATTR = "identity"
CHANNEL_ORDER = "channel order"
"""Field of the identity of a study over widths: digest of the order of the model's channels."""


def refuse_other(study: Study, identity: JsonObject) -> None:
    """Refuse a study that was made with other settings than those that are asked for.

    The message names the options that would resume the study, and a name for a new study.

    Args:
        study: the study.
        identity: the whole identity, or the part that is known before the model is loaded.

    Raises:
        StudyError: the study was made with other settings.
    """
    known = identity_of(study)
    # A whole identity also differs in the fields that it lacks. A part is compared field by field.
    if "model content" not in identity:
        known = {name: value for name, value in known.items() if name in identity}
    differing = differences(known, identity)
    if not differing:
        return
    name, recipe = study.study_name, recipe_of(study)
    # Collect everything that is needed to resume the study.
    to_resume = []
    if options := advice(known, identity):
        to_resume.append(options)
    if known.get("model content") != identity.get("model content"):
        to_resume.append(f"the model as it was when {recipe.model.path} was searched")
    if known.get("data content") != identity.get("data content"):
        source = recipe.data.task_data or recipe.objective.task or recipe.data.calibration
        to_resume.append(f"the text as it was when {source} was read")
    if known.get("numerics") != identity.get("numerics"):
        to_resume.append("the same `device` and `dtype`")
    if any(name.endswith(VERSION) and known[name] != identity.get(name) for name in known):
        to_resume.append("the versions of the libraries that it was made with")
    # The suggested name for a new study depends on what is asked for.
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    raise StudyError(
        f"study {name!r} was made with another recipe ({'; '.join(differing)}): to resume it give "
        f"{', '.join(to_resume) or 'the same settings'}; "
        f"for a new one give `study` {name}-{digest[:6]}"
    )


def recipe_of(study: Study) -> Recipe:
    """Return the recipe that a study was made with.

    Raises:
        StudyError: the study holds no recipe, or one that cannot be read.
    """
    text = study.user_attrs.get(RECIPE_ATTR)
    if text is None:
        raise StudyError(
            f"study {study.study_name!r} holds no recipe: it was not made by prunesearch"
        )
    try:
        return Recipe.of_stored(as_object(json.loads(text), RECIPE_ATTR))
    except (ValueError, TypeError, RecursionError):
        # An attribute of somebody else's study can be anything.
        raise StudyError(
            f"study {study.study_name!r} was made by another version of prunesearch: use that one "
            f"to read it"
        ) from None


def identity_of(study: Study) -> JsonObject:
    """Return everything that determines the study's trials, with the digests of model and data.

    Raises:
        StudyError: the study holds no recipe.
    """
    recipe_of(study)
    return as_object(json.loads(study.user_attrs[IDENTITY_ATTR]), "the identity of the study")
