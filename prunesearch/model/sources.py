"""Where each parameter of a model lies in a checkpoint, under whatever names and in whatever pieces it is stored there.

Names and pieces follow transformers' own rules (`conversion_mapping`): a checkpoint may lack or repeat the base model's
prefix, use names of an older version, or hold one tensor an expert where the model has one for all.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    build_glob_alternation,
    dot_natural_key,
    rename_source_key,
)

from prunesearch.errors import ModelError, one_line
from prunesearch.model.checkpoint import Stored, read


@dataclass
class Fused:
    """A tensor that is stored in pieces.

    Attributes:
        name: of the parameter.
        pieces: each with the pattern that its stored name matches, in the order in which they are put together.
    """

    name: str
    model: PreTrainedModel
    converter: WeightConverter
    pieces: list[tuple[str, Stored]] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of all pieces."""
        return sum(stored.nbytes for _, stored in self.pieces)

    def read(self) -> torch.Tensor:
        """Read the pieces and put them together.

        Raises:
            OSError: one cannot be read.
        """
        converter = deepcopy(self.converter)
        for pattern, stored in self.pieces:
            converter.add_tensor(self.name, self.name, pattern, read(stored))  # type: ignore[arg-type]
        made = converter.convert(self.name, model=self.model, config=self.model.config)
        tensor = made[self.name]
        whole: torch.Tensor = tensor[0] if isinstance(tensor, list) else tensor
        return whole


_TWICE = (
    "checkpoint {name!r} holds {parameter} twice, as {first} and as {second}, and they differ: delete the wrong one"
)

Source = Stored | Fused | torch.Tensor
"""Where a parameter is: whole in a file, in pieces in a file, or in host memory."""


def read_source(source: Source) -> torch.Tensor:
    """The tensor, in memory.

    Raises:
        OSError: it cannot be read.
    """
    if isinstance(source, Stored):
        return read(source)
    return source.read() if isinstance(source, Fused) else source


def locate(model: PreTrainedModel, stored: Mapping[str, Stored], name: str) -> dict[str, Stored | Fused]:
    """Find every parameter and stored buffer of a model; one that is tied to another need not be stored.

    Args:
        name: of the checkpoint, for messages.

    Raises:
        ModelError: one is not there, has another shape, or is quantised.
    """
    check_stored(model, stored, name)
    state = model.state_dict()
    found = _match(model, stored, state)
    tied: dict[str, str] = dict(getattr(model, "all_tied_weights_keys", None) or {})
    for follower, parameter in tied.items():
        if parameter not in found and follower in found:
            found[parameter] = found[follower]  # the checkpoint has the tensor under the other name
    for parameter, tensor in state.items():
        place = found.get(parameter)
        if place is None and parameter in tied:
            continue
        whole = place if isinstance(place, Stored) else None
        if place is None or (whole is not None and whole.shape != tuple(tensor.shape)):
            what = "does not hold" if place is None else "holds in another shape"
            raise ModelError(
                f"checkpoint {name!r} {what} {parameter}: it is not complete, or stored in other pieces than "
                f"{type(model).__name__} is built of; use --weights memory"
            )
    return {parameter: place for parameter, place in found.items() if parameter in state}


def check_stored(model: PreTrainedModel, stored: Mapping[str, Stored], name: str) -> None:
    """Refuse a checkpoint that readers understand differently.

    Weights stored as integers or in 8 bits, while no config says how they are to be read, are taken by transformers as
    they are. Of two tensors that make one parameter, as under an old and a new name, each reader takes another.

    Args:
        name: of the checkpoint, for messages.

    Raises:
        ModelError: there are such weights.
    """
    state = model.state_dict()
    whole: dict[str, str] = {}
    in_pieces: dict[str, str] = {}
    for key, (parameter, pattern) in parameters_of(model, stored, state).items():
        dtype = stored[key].dtype
        if state[parameter].is_floating_point() and (not dtype.is_floating_point or dtype.itemsize < 2):
            raise ModelError(
                f"checkpoint {name!r} holds {parameter} quantised ({str(dtype).removeprefix('torch.')}), and its "
                "config does not say how to read it: give the unquantised model"
            )
        if pattern is not None:
            in_pieces.setdefault(parameter, key)
            continue
        first = whole.setdefault(parameter, key)
        if first != key and not _same(stored[first], stored[key]):
            raise ModelError(_TWICE.format(name=name, parameter=parameter, first=first, second=key))
    for parameter in sorted(whole.keys() & in_pieces.keys()):
        first, second = whole[parameter], in_pieces[parameter]
        raise ModelError(_TWICE.format(name=name, parameter=parameter, first=first, second=second))


def _same(one: Stored, other: Stored) -> bool:
    """Whether two stored tensors hold the same."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    try:
        return torch.equal(read(one), read(other))
    except OSError as error:
        raise ModelError(f"cannot read {str(one.path)!r}: {one_line(error)}; get it again") from None


def _match(
    model: PreTrainedModel, stored: Mapping[str, Stored], state: dict[str, torch.Tensor]
) -> dict[str, Stored | Fused]:
    """Give each stored tensor to the parameter it makes, as `from_pretrained` does."""
    by_pattern = {pattern: converter for converter in _rules(model)[1] for pattern in converter.source_patterns}
    found: dict[str, Stored | Fused] = {}
    for key, (target, pattern) in parameters_of(model, stored, state).items():
        if pattern is None:
            found[target] = stored[key]
            continue
        fused = found.setdefault(target, Fused(target, model, by_pattern[pattern]))
        assert isinstance(fused, Fused)
        fused.pieces.append((pattern, stored[key]))
    return found


def parameters_of(
    model: PreTrainedModel, names: Iterable[str], state: dict[str, torch.Tensor] | None = None
) -> dict[str, tuple[str, str | None]]:
    """Which parameter each stored tensor makes, or is a piece of.

    Args:
        model: may be on the meta device.
        names: of stored tensors; those that the model does not read are left out.
        state: the model's `state_dict`, where it is at hand.

    Returns:
        By stored name: the parameter, and for a piece the pattern that its name matches.
    """
    state = model.state_dict() if state is None else state
    renamings, converters = _rules(model)
    found: dict[str, tuple[str, str | None]] = {}
    for key in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, state)
        if target not in state and key in state:
            target, pattern = key, None
        if target in state:
            found[key] = target, pattern
    return found


def _rules(model: PreTrainedModel) -> tuple[list[WeightRenaming], list[WeightConverter]]:
    rules = get_model_conversion_mapping(model)
    return (
        [rule for rule in rules if isinstance(rule, WeightRenaming)],
        [rule for rule in rules if isinstance(rule, WeightConverter)],
    )


def keep_exact_parts(model: PreTrainedModel) -> None:
    """Give the parameters that transformers keeps in float32, whatever is asked for, that type.

    Args:
        model: on the meta device.
    """
    patterns = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if model.dtype == torch.float16:
        patterns |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    if not patterns or model.dtype not in (torch.float16, torch.bfloat16):
        return
    exact, *_ = build_glob_alternation(sorted(patterns))
    for name, parameter in model.named_parameters():
        if exact.search(name):
            parameter.data = parameter.data.to(torch.float32)
