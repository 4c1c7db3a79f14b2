"""The slots of a runner: how many jobs run at once, and on which device."""

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Slot:
    """A place for one job.

    Attributes:
        device: device as the operator named it. None: the default device.
    """

    device: str | None

    @property
    def torch_device(self) -> str | None:
        """Name of the device in the process of the job, which sees one GPU only."""
        if self.device is not None and self.device.startswith("cuda:"):
            return "cuda"
        return self.device

    def environment(self, outer: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Return the variables that show a GPU to the process of the job.

        Args:
            outer: variables of this process. It may see some of the machine's GPUs only.
        """
        if self.device is None or not self.device.startswith("cuda:"):
            return {}
        index = self.device.removeprefix("cuda:")
        seen = [part.strip() for part in outer.get(_VISIBLE, "").split(",") if part.strip()]
        if index.isdecimal() and int(index) < len(seen):
            index = seen[int(index)]
        return {_VISIBLE: index}


class Slots:
    """The slots of a runner. A slot has one job at a time.

    Args:
        devices: device of each slot (see `settings.ServiceSettings.slots`).
    """

    def __init__(self, devices: Sequence[str | None]) -> None:
        self._free = [Slot(device) for device in devices]
        self._changed = threading.Condition()
        self.count = len(devices)

    @property
    def used(self) -> int:
        """Number of slots that have a job."""
        with self._changed:
            return self.count - len(self._free)

    def acquire(self, seconds: float) -> Slot | None:
        """Take a free slot, or return None if none gets free in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._free), timeout=seconds):
                return None
            return self._free.pop(0)

    def release(self, slot: Slot) -> None:
        """Give a slot back."""
        with self._changed:
            self._free.append(slot)
            self._changed.notify_all()
