"""Find where each parameter of a model lies in a checkpoint, whatever its stored name is.

Names and pieces follow transformers' own rules (`conversion_mapping`). A checkpoint may lack or
repeat the prefix of the base model, use names of an older version, or hold one tensor per expert
where the model has one tensor for all experts.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from prunesearch.compat.transformers import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    float32_names,
    get_model_conversion_mapping,
    rename_source_key,
)
from prunesearch.errors import ModelError, one_line
from prunesearch.models.safetensors_files import Stored, read


@dataclass
class Fused:
    """A tensor that is stored in pieces.

    Attributes:
        name: name of the parameter.
        model: model that has the parameter.
        converter: rule of transformers that joins the pieces.
        pieces: pairs of the pattern that a piece's stored name matches, and the piece, in the order
            of joining.
    """

    name: str
    model: PreTrainedModel
    converter: WeightConverter
    pieces: list[tuple[str, Stored]] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Return the bytes of all pieces."""
        return sum(stored.nbytes for _, stored in self.pieces)

    def read(self) -> torch.Tensor:
        """Read the pieces and join them.

        Raises:
            OSError: a piece cannot be read.
        """
        # A converter collects tensors, so each reading has a converter of its own.
        converter = deepcopy(self.converter)
        for pattern, stored in self.pieces:
            piece = read(stored)
            converter.add_tensor(self.name, self.name, pattern, piece)  # type: ignore[arg-type]
        made = converter.convert(self.name, model=self.model, config=self.model.config)
        tensor = made[self.name]
        whole: torch.Tensor = tensor[0] if isinstance(tensor, list) else tensor
        return whole


_TWICE = (
    "checkpoint {name!r} holds {parameter} twice, as {first} and as {second}, and they differ: "
    "delete the wrong one"
)

Source = Stored | Fused | torch.Tensor
"""The source of a parameter: whole in a file, in pieces in files, or a tensor in host memory."""


def read_source(source: Source) -> torch.Tensor:
    """Return the tensor of a source, read into memory.

    Raises:
        OSError: it cannot be read.
    """
    if isinstance(source, Stored):
        return read(source)
    if isinstance(source, Fused):
        return source.read()
    return source


def locate(
    model: PreTrainedModel, stored: Mapping[str, Stored], name: str
) -> dict[str, Stored | Fused]:
    """Find every parameter and every stored buffer of a model.

    A parameter that is tied to another one need not be stored.

    Args:
        model: model whose parameters are looked up; it may be on the meta device.
        stored: tensors of the checkpoint by name.
        name: name of the checkpoint, for messages.

    Raises:
        ModelError: a parameter is missing, has another shape, or is quantised.
    """
    check_stored(model, stored, name)
    state = model.state_dict()
    found = _match(model, stored, state)
    # A checkpoint may hold a tied tensor under either of its names.
    tied: dict[str, str] = dict(getattr(model, "all_tied_weights_keys", None) or {})
    for follower, parameter in tied.items():
        if parameter not in found and follower in found:
            found[parameter] = found[follower]
    # Every parameter must be found, with the shape that the model has.
    for parameter, tensor in state.items():
        place = found.get(parameter)
        if place is None and parameter in tied:
            continue
        problem = None
        if place is None:
            problem = "does not hold"
        elif isinstance(place, Stored) and place.shape != tuple(tensor.shape):
            problem = "holds in another shape"
        if problem is not None:
            raise ModelError(
                f"checkpoint {name!r} {problem} {parameter}: it is not complete, or stored in "
                f"other pieces than "
                f"{type(model).__name__} is built of; use `offload` none"
            )
    return {parameter: place for parameter, place in found.items() if parameter in state}


def check_stored(model: PreTrainedModel, stored: Mapping[str, Stored], name: str) -> None:
    """Refuse a checkpoint that programs read in different ways.

    transformers takes weights that are stored as integers or in 8 bits as they are, if the config
    does not describe the quantisation. If two stored tensors make one parameter (under an old and a
    new name), each program takes a different one.

    Args:
        model: model that the checkpoint is of; it may be on the meta device.
        stored: tensors of the checkpoint by name.
        name: name of the checkpoint, for messages.

    Raises:
        ModelError: a weight is quantised, or two tensors make one parameter and differ.
    """
    state = model.state_dict()
    whole: dict[str, str] = {}
    in_pieces: dict[str, str] = {}
    # Note under which name each parameter is stored first, whole or in pieces.
    for key, (parameter, pattern) in parameters_of(model, stored, state).items():
        dtype = stored[key].dtype
        if state[parameter].is_floating_point() and (
            not dtype.is_floating_point or dtype.itemsize < 2
        ):
            raise ModelError(
                f"checkpoint {name!r} holds {parameter} quantised "
                f"({str(dtype).removeprefix('torch.')}), and its "
                "config does not say how to read it: give the unquantised model"
            )
        if pattern is not None:
            in_pieces.setdefault(parameter, key)
            continue
        first = whole.setdefault(parameter, key)
        if first != key and not _same(stored[first], stored[key]):
            raise ModelError(_TWICE.format(name=name, parameter=parameter, first=first, second=key))
    # No parameter may be stored both whole and in pieces.
    for parameter in sorted(whole.keys() & in_pieces.keys()):
        first, second = whole[parameter], in_pieces[parameter]
        raise ModelError(_TWICE.format(name=name, parameter=parameter, first=first, second=second))


def _same(one: Stored, other: Stored) -> bool:
    """Return whether two stored tensors have the same content.

    Raises:
        ModelError: one of them cannot be read.
    """
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    try:
        return torch.equal(read(one), read(other))
    except OSError as error:
        raise ModelError(
            f"cannot read {str(one.path)!r}: {one_line(error)}; get it again"
        ) from None


def _match(
    model: PreTrainedModel, stored: Mapping[str, Stored], state: dict[str, torch.Tensor]
) -> dict[str, Stored | Fused]:
    """Assign each stored tensor to the parameter it makes, as `from_pretrained` does."""
    by_pattern: dict[str, WeightConverter] = {}
    for converter in _rules(model)[1]:
        by_pattern.update(dict.fromkeys(converter.source_patterns, converter))
    found: dict[str, Stored | Fused] = {}
    for key, (target, pattern) in parameters_of(model, stored, state).items():
        if pattern is None:
            found[target] = stored[key]
            continue
        # The tensor is one of the pieces of the parameter.
        fused = found.setdefault(target, Fused(target, model, by_pattern[pattern]))
        assert isinstance(fused, Fused)
        fused.pieces.append((pattern, stored[key]))
    return found


def parameters_of(
    model: PreTrainedModel, names: Iterable[str], state: dict[str, torch.Tensor] | None = None
) -> dict[str, tuple[str, str | None]]:
    """Find the parameter that each stored tensor makes, or that it is a piece of.

    Args:
        model: model that reads the tensors; it may be on the meta device.
        names: names of stored tensors. Those that the model does not read are not in the result.
        state: the model's `state_dict`, if the caller has it already.

    Returns:
        For each stored name the parameter and, for a piece, the pattern that its name matches.
    """
    if state is None:
        state = model.state_dict()
    renamings, converters = _rules(model)
    found: dict[str, tuple[str, str | None]] = {}
    for key in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(
            key, renamings, converters, model.base_model_prefix, state
        )
        # A name that the model has needs no rule.
        if target not in state and key in state:
            target, pattern = key, None
        if target in state:
            found[key] = target, pattern
    return found


def _rules(model: PreTrainedModel) -> tuple[list[WeightRenaming], list[WeightConverter]]:
    """Return the rules of transformers for a model: those that rename, and those that join
    pieces.
    """
    renamings, converters = [], []
    for rule in get_model_conversion_mapping(model):
        if isinstance(rule, WeightRenaming):
            renamings.append(rule)
        if isinstance(rule, WeightConverter):
            converters.append(rule)
    return renamings, converters


def keep_exact_parts(model: PreTrainedModel) -> None:
    """Convert the parameters that transformers keeps in float32 to float32.

    transformers does so whatever dtype the caller asks for.

    Args:
        model: model on the meta device.
    """
    # Some parameters are kept in float32 in any 16-bit model, others only in a float16 model.
    exact = float32_names(model)
    if exact is None or model.dtype not in (torch.float16, torch.bfloat16):
        return
    for name, parameter in model.named_parameters():
        if exact.search(name):
            parameter.data = parameter.data.to(torch.float32)
