"""A bundled modelling file that extends the stock one and leaves the sublayers out.

It is for transformers 5.
"""

from prunesearch.export.formats.registry import register
from prunesearch.export.formats.with_code import FormatWithCode

register(
    FormatWithCode(
        "remote-code",
        "Dropped sublayers are gone, and are saved in memory and time. transformers 5 or newer "
        "runs it with trust_remote_code=True and the bundled modelling file.",
        order=40,
        whole_blocks=False,
        sublayers=True,
        own_code=True,
        streamed=False,
    )
)
