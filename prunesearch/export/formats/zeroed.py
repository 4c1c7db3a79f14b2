"""Dropped sublayers with weights of zero, in the unchanged architecture."""

from typing import TYPE_CHECKING

from prunesearch.candidate import LayerSubset
from prunesearch.export.formats.registry import ExportFormat, register

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Zeroed(ExportFormat):
    """The checkpoint loads anywhere, but it is neither smaller nor faster than the dense one."""

    def zeroed_parameters(self, model: "PreTrainedModel", dropped: LayerSubset) -> set[str]:
        """Return the parameters of the dropped sublayers."""
        from prunesearch.export.layout import sublayer_parameters

        return sublayer_parameters(model, dropped)


register(
    Zeroed(
        "zeroed",
        "Dropped sublayers are there with weights of zero: it loads wherever the base model does, "
        "and is neither smaller nor faster for them.",
        order=20,
        whole_blocks=False,
        sublayers=True,
    )
)
