"""The database of studies, as the pages read it."""

import threading
from collections import OrderedDict
from functools import lru_cache

from optuna.storages import RDBStorage

from prunesearch.service.settings import ServiceSettings
from prunesearch.service.study_points import StudyPoints, finished_mark, study_points
from prunesearch.studies import persistence

_KEPT = 8  # studies whose trials are kept; 10,000 trials take about 3 MiB


class _Points:
    """Reads the trials of studies. Those of a study are kept until another one is finished.

    Many pages can follow the same search, and each is made again every few seconds.

    Args:
        storage: database of the studies.
    """

    def __init__(self, storage: RDBStorage) -> None:
        self._storage, self._lock = storage, threading.Lock()
        self._kept: OrderedDict[str, tuple[tuple[int, ...], StudyPoints]] = OrderedDict()

    def of(self, name: str) -> StudyPoints | None:
        """Return the finished trials of a study. None: the study does not exist."""
        # The mark is read first. A trial that is finished in between is read again next time.
        mark = finished_mark(self._storage, name)
        if mark is None:
            return None
        with self._lock:
            known = self._kept.get(name)
        if known is not None and known[0] == mark:
            return known[1]
        found = study_points(self._storage, name)
        if found is not None:
            with self._lock:
                self._kept[name] = mark, found
                self._kept.move_to_end(name)
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
        return found


def points_of(settings: ServiceSettings, name: str) -> StudyPoints | None:
    """Return the finished trials of a study. None: the study does not exist."""
    return _points(settings.storage).of(name)


@lru_cache(maxsize=8)
def _points(url: str) -> _Points:
    """Open the database of studies once. It is made if it is missing."""
    return _Points(persistence.open_storage(url, create=True, patience=0.0))
