"""`ServiceSettings`: what the operator of a service decides. No request can change it."""

import re
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy

from prunesearch.cache.location import CacheLocation, check_url, sqlite_file
from prunesearch.config.run_options import RunOptions
from prunesearch.errors import InputError
from prunesearch.runtime.json_values import JsonObject

_DATABASE = "service.db"
"""File of the service's tables, beside the file of the studies."""
_DEVICE = re.compile(r"(?:cpu|cuda|mps|xpu|hpu|npu)(?::\d{1,4})?", re.ASCII)


@dataclass(frozen=True)
class ServiceSettings:
    """Settings of a service: where its state is, and what jobs may use.

    Attributes:
        storage: URL of the database of studies, as for ``--storage``.
        cache: location of the evaluation cache, as for ``--cache``.
        exports: folder of the exports. Each job has a folder of its own in it, named by the job.
        models: folders whose models a recipe may name.
        data: folders whose texts and documents a recipe may name.
        allow_hub: whether a recipe may name models and datasets of the Hugging Face hub.
        devices: devices that jobs share, such as ``cuda:0``. Empty: one device, which the command
            line would choose.
        jobs_per_device: number of jobs that use a device at once.
        threads: torch CPU threads of a job. None: torch's choice.
        workers, engine, ray_address, gpus_per_worker: who scores the candidates of a job, as in
            `config.run_options.RunOptions`.
    """

    storage: str = "sqlite:///storage/study.db"
    cache: str = "storage/cache"
    exports: Path = Path("storage/exports")
    models: tuple[Path, ...] = (Path("storage/models"),)
    data: tuple[Path, ...] = (Path("storage/data"),)
    allow_hub: bool = False
    devices: tuple[str, ...] = ()
    jobs_per_device: int = 1
    threads: int | None = None
    workers: int = 1
    engine: str = "local"
    ray_address: str | None = None
    gpus_per_worker: float | None = None

    def __post_init__(self) -> None:
        """Refuse settings that cannot be used.

        Raises:
            InputError: a URL, a number or a device is not accepted.
        """
        check_url(self.storage)
        CacheLocation.parse(self.cache)
        # The options of a job refuse what a job could not use.
        RunOptions.of({"storage": self.storage, "cache": self.cache, **self.scoring})
        if self.jobs_per_device < 1:
            raise InputError(f"`jobs_per_device` {self.jobs_per_device}: give 1 or more")
        for device in self.devices:
            if _DEVICE.fullmatch(device) is None:
                raise InputError(f"`devices` names {device!r}: give names such as cuda:0 or cpu")
            if self.devices.count(device) > 1:
                raise InputError(
                    f"`devices` names {device!r} twice: for several jobs on one device give "
                    f"`jobs_per_device`"
                )

    @property
    def database(self) -> str:
        """URL of the database with the service's tables and its queue.

        On a server it is the database of the studies. SQLite locks a whole file, so the service has
        a file of its own beside that of the studies.
        """
        file = sqlite_file(self.storage)
        if file is None:
            return self.storage
        url = sqlalchemy.make_url(self.storage)
        beside = url.set(database=str(file.with_name(_DATABASE)))
        return beside.render_as_string(hide_password=False)

    @property
    def scoring(self) -> JsonObject:
        """Run options of every job: who scores its candidates, by the names of `RunOptions`."""
        values: JsonObject = {"workers": self.workers, "engine": self.engine}
        for name in ("threads", "ray_address", "gpus_per_worker"):
            value = getattr(self, name)
            if value is not None:
                values[name] = value
        return values

    @property
    def slots(self) -> tuple[str | None, ...]:
        """Devices, each as often as jobs may use it at once. None: the default device."""
        devices: tuple[str | None, ...] = self.devices or (None,)
        return devices * self.jobs_per_device
