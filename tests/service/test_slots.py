"""Devices that jobs share."""

import threading

from prunesearch.service.slots import Slot, Slots


def test_a_slot_has_one_job_at_a_time() -> None:
    slots = Slots(("cuda:0", "cuda:1"))
    first, second = slots.acquire(0), slots.acquire(0)
    assert [first, second] == [Slot("cuda:0"), Slot("cuda:1")]
    assert slots.acquire(0.01) is None
    assert (slots.used, slots.count) == (2, 2)
    assert second is not None
    threading.Timer(0.05, slots.release, [second]).start()
    assert slots.acquire(5) == second


def test_a_job_sees_one_gpu() -> None:
    slot = Slot("cuda:1")
    assert slot.torch_device == "cuda"
    assert slot.environment({}) == {"CUDA_VISIBLE_DEVICES": "1"}
    # The runner itself may see some of the machine's GPUs only.
    assert slot.environment({"CUDA_VISIBLE_DEVICES": "4, 6"}) == {"CUDA_VISIBLE_DEVICES": "6"}
    for other in (Slot("cpu"), Slot(None), Slot("cuda")):
        assert other.environment({}) == {}
        assert other.torch_device == other.device
