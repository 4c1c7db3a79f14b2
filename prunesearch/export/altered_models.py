"""Temporary changes of models that are compared: blocks without effect, and narrow windows."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.models.model_configs import settings_of
from prunesearch.models.reordering import check_order
from prunesearch.models.structure import blocks_of
from prunesearch.models.surgery import used
from prunesearch.runtime.patching import replaced

_NARROW = 4
_WINDOWS = (
    "sliding_window",
    "attention_window_size",
    "attention_chunk_size",
    "local_attention",
    "window_size",
)


@contextmanager
def identity_blocks(model: PreTrainedModel, candidate: LayerSubset) -> Iterator[None]:
    """Make the dropped blocks of a dense model return their input unchanged inside the ``with``
    block. Kept blocks compute with what the candidate leaves of them.

    The kept blocks keep their own numbers and masks. The dropped blocks still compute, which shows
    in what form a block of any type returns its hidden states.
    """

    def handing_on(forward: Callable[..., Any]) -> Callable[..., Any]:
        def hand_on(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            out = forward(*args, **kwargs)
            hidden = args[0] if args else kwargs["hidden_states"]
            if isinstance(out, tuple | list):
                return (hidden, *out[1:])
            return hidden

        return hand_on

    blocks = blocks_of(model)
    with ExitStack() as stack:
        for number in candidate.dropped:
            forward = blocks[number].forward
            # Each block needs a closure of its own, as `forward` is a variable of the loop.
            stack.enter_context(replaced(blocks[number], "forward", handing_on(forward)))
        # Kept blocks lose sublayers, channels and KV groups.
        check_order(model, candidate)
        if not candidate.whole_blocks:
            for number in candidate.kept:
                stack.enter_context(used(model, blocks[number], candidate.use(number)))
        yield


@contextmanager
def short_windows(config: PretrainedConfig) -> Iterator[bool]:
    """Make a model's attention windows a few tokens wide inside the ``with`` block.

    Yields:
        True if the model has attention windows.
    """
    settings = settings_of(config)
    stored = settings.to_dict()
    windows: dict[str, int] = {}
    for name in _WINDOWS:
        width = getattr(settings, name, None)
        if name in stored and isinstance(width, int) and width > _NARROW:
            windows[name] = width
    try:
        for name in windows:
            setattr(settings, name, _NARROW)
        yield bool(windows)
    finally:
        for name, width in windows.items():
            setattr(settings, name, width)
