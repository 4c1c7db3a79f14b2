"""Memory of a GPU that is free for the hidden states of a generation."""

import torch

STATE_BYTES = 2**31
"""Memory for hidden states where it is not chosen by what is free: on a CPU."""
_SHARE = 0.5  # share of the free memory for states; final states are held a second time


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a GPU, with what torch has reserved and does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    return int(free + reserved - torch.cuda.memory_allocated(device))


def state_bytes(device: torch.device, set_aside: int) -> int:
    """Return the memory for hidden states that fits a device.

    Args:
        device: device of the states.
        set_aside: bytes that a block at work, the head and the dense model's outputs need.
    """
    if device.type != "cuda":
        return STATE_BYTES
    return max(2**28, int(_SHARE * (free_bytes(device) - set_aside)))
