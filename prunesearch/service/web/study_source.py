"""The database of studies, as the pages read it."""

from functools import lru_cache

from optuna.storages import RDBStorage

from prunesearch.service.settings import ServiceSettings
from prunesearch.studies import persistence


def storage_of(settings: ServiceSettings) -> RDBStorage:
    """Return the database of studies. It is opened once, and made if it is missing."""
    return _opened(settings.storage)


@lru_cache(maxsize=8)
def _opened(url: str) -> RDBStorage:
    return persistence.open_storage(url, create=True, patience=0.0)
