"""Parts of peft that are not in its public interface. Tested with peft 0.21.2."""

from contextlib import AbstractContextManager

from peft.utils import SAFETENSORS_WEIGHTS_NAME as SAFETENSORS_WEIGHTS_NAME
from peft.utils import transformers_weight_conversion

from prunesearch.runtime.patching import replaced

_RENAMING = "convert_peft_config_for_transformers"


def names_as_given() -> AbstractContextManager[None]:
    """Return a context in which peft takes the names of layers as they are given.

    In a model with experts, peft reads names such as `gate_proj` as those of older versions of
    transformers, in which each expert had its own layers. It would then adapt the fused experts.
    Stands for `peft.utils.transformers_weight_conversion.convert_peft_config_for_transformers`.
    """
    return replaced(transformers_weight_conversion, _RENAMING, lambda *args, **kwargs: None)
