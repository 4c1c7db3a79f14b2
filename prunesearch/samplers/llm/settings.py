"""Settings of the sampler `llm`, and what it is given beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from prunesearch.errors import InputError
from prunesearch.llm.recorded_chat import RecordedChat
from prunesearch.runtime.json_values import JsonObject
from prunesearch.units import noun_for


@dataclass(frozen=True)
class ProposalSettings:
    """Settings that decide what is proposed.

    Attributes:
        temperature: temperature of the model. It rises while the search stagnates.
        candidates: number of candidates in a reply.
        attempts: number of requests in a row without a new candidate after which an evolutionary
            operator takes over.
        reflection: number of generations after which the model writes down lessons, which later
            requests show; 0 for none.
        history: number of scored candidates in a request.
        max_repair: largest share of a candidate that may be changed to meet the budget. A candidate
            that would need more is not used.
        context: most tokens of a request and its reply together.
        shuffle_scores: show each candidate with the score of another one, for experiments.
        rename_layers: show the layers under other numbers, for experiments.
    """

    temperature: float = 0.7
    candidates: int = 4
    attempts: int = 3
    reflection: int = 0
    history: int = 14
    max_repair: float = 0.75
    context: int = 8192
    shuffle_scores: bool = False
    rename_layers: bool = False

    def stored(self) -> JsonObject:
        """Return the settings as JSON values, as a study stores them."""
        return asdict(self)


@dataclass(frozen=True)
class LayerTable:
    """Statistics of layers that a request shows.

    Attributes:
        columns: numbers by name, one for each unit of a search over layers, or for each layer.
    """

    columns: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def check(self, rows: int) -> None:
        """Refuse a table of another model.

        Raises:
            InputError: a column has another number of rows.
        """
        for name, values in self.columns.items():
            if len(values) != rows:
                raise InputError(
                    f"the column {name} has {len(values)} {noun_for(len(values), 'number')}, and "
                    f"{rows} are needed"
                )


@dataclass(frozen=True)
class LanguageModel:
    """The language model of a sampler.

    Attributes:
        chat: asks the model.
        proposals: settings that decide what is proposed.
        table: statistics that requests show.
        required: raise an error if the model fails, instead of going on without it.
    """

    chat: RecordedChat
    proposals: ProposalSettings = field(default_factory=ProposalSettings)
    table: LayerTable = field(default_factory=LayerTable)
    required: bool = False
