"""The paths of a study's model and data on each host."""

import json
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from optuna.study import Study

from prunesearch.config.flat import PLACES
from prunesearch.config.recipe import PATHS, Recipe
from prunesearch.errors import StudyError
from prunesearch.studies.study_recipe import recipe_of

PLACES_ATTR = "places"
"""User attribute of a study: paths of its model and data on each host, the latest first."""
_PLACES_KEPT = 4  # number of places that are kept for each host


def remember_places(study: Study, recipe: Recipe) -> None:
    """Store the absolute paths of the recipe's model and data on this host.

    With them, the study can be resumed from any folder.
    """
    location = _places_of(study)
    own = {}
    for name, value in _paths(recipe).items():
        if Path(value).exists():
            own[name] = str(Path(value).absolute())
    host = socket.gethostname()
    before = location.get(host, [])
    # The latest place comes first. Write only if it is a new one.
    if own and before[:1] != [own]:
        older = [place for place in before if place != own]
        location[host] = [own, *older][:_PLACES_KEPT]
        study.set_user_attr(PLACES_ATTR, json.dumps(location))


def located(study: Study, given: Mapping[str, str | None], needed: Sequence[str] = PATHS) -> Recipe:
    """Return a study's recipe with the paths of its model and data on this host.

    Args:
        study: the study.
        given: paths that the user gave, by the recipe's names. They take precedence.
        needed: names of the paths that must exist on this host.

    Raises:
        StudyError: a needed path does not exist on this host.
    """
    recipe, found = recipe_of(study), dict[str, str | None]()
    missing: dict[str, tuple[str, str]] = {}
    for name, typed in _paths(recipe).items():
        # 1. Use the path that the user gave. A revision belongs to the model of the recipe only.
        if given.get(name):
            found[name] = given[name]
            if name == "model":
                found["revision"] = None
            continue
        # 2. Otherwise use the first known path that exists: of this host, of the recipe, of other
        # hosts.
        own, others = _known_places(study, name)
        here = [path for path in (*own, typed, *others) if Path(path).exists()]
        if here:
            found[name] = here[0]
        elif (own or others) and name in needed:
            missing[name] = (typed, (own or others)[0])
    if missing:
        raise _not_here(study, missing)
    return recipe.with_changes(**found)


def _not_here(study: Study, missing: Mapping[str, tuple[str, str]]) -> StudyError:
    """Return the error for paths of a study that do not exist on this host.

    Args:
        study: the study.
        missing: for each name, the path in the recipe and the latest known one.
    """
    things, locations, options = [], [], []
    for name, (typed, location) in missing.items():
        things.append(f"the {name.replace('_', ' ')} {typed!r}")
        locations.append(location)
        options.append(f"`{name}` PATH")
    be, it = ("are", "they were") if len(things) > 1 else ("is", "it was")
    return StudyError(
        f"{' and '.join(things)} of study {study.study_name!r} {be} not here ({it} "
        f"{' and '.join(locations)}): give {' and '.join(options)}; the content is compared with "
        f"what was searched"
    )


def _known_places(study: Study, name: str) -> tuple[list[str], list[str]]:
    """Return the known paths of the model or data on this host, latest first, and on other hosts.

    A path of another host may exist here, too, if the hosts share a disk.
    """
    own: list[str] = []
    others: list[str] = []
    for host, location in _places_of(study).items():
        paths = [place[name] for place in location if name in place]
        if host == socket.gethostname():
            own += paths
        else:
            others += paths
    return own, others


def _places_of(study: Study) -> dict[str, list[dict[str, str]]]:
    location: dict[str, list[dict[str, str]]] = json.loads(study.user_attrs.get(PLACES_ATTR, "{}"))
    return location


def _paths(recipe: Recipe) -> dict[str, str]:
    """Return the settings of a recipe that may be paths."""
    paths = {}
    for name in PATHS:
        section, field = PLACES[name]
        value = getattr(getattr(recipe, section), field)
        if value is not None:
            paths[name] = value
    return paths
