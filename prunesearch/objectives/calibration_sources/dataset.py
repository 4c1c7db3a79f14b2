"""Datasets of the Hugging Face hub, or of a local folder."""

from transformers import PreTrainedTokenizerBase

from prunesearch.errors import DataError
from prunesearch.models.guard import guarded
from prunesearch.objectives.calibration_sources.registry import CalibrationSource, register
from prunesearch.objectives.text_files import CHAT_FIELDS, FIELDS, TEXT_FIELDS, documents_of


def read(source: str, tokenizer: PreTrainedTokenizerBase | None = None) -> list[str]:
    """Read the documents of a dataset.

    Args:
        source: dataset as ``id[:config[:split]]`` for `datasets.load_dataset`.
        tokenizer: tokenizer with the chat template for conversations. None: they are refused.

    Raises:
        DataError: the dataset cannot be loaded, or it has no text.
    """
    import datasets

    name, _, rest = source.partition(":")
    config, _, split = rest.partition(":")
    failure = f"cannot load calibration {source!r} as a file or dataset"
    with guarded(failure, kind=DataError, advice="give FILE or id[:config[:split]]"):
        data = datasets.load_dataset(name, config or None, split=split or "train")
        wanted = [name for name in data.column_names if name in (*TEXT_FIELDS, *CHAT_FIELDS)]
        rows = data.select_columns(wanted).to_list() if wanted else []
    if not wanted:
        raise DataError(
            f"dataset {source!r} has no text column ({FIELDS}): its columns are "
            f"{', '.join(data.column_names)}"
        )
    return documents_of(rows, f"dataset {source!r}", tokenizer)


# Every other name is a dataset's.
register(
    CalibrationSource(
        "dataset", "id[:config[:split]]", order=90, matches=lambda name: True, read=read
    )
)
