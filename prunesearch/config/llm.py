"""Section `llm` of a recipe: the language model that the sampler `llm` asks."""

from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from prunesearch.config.settings import Settings
from prunesearch.llm.endpoint import check_endpoint_url
from prunesearch.llm.limits import Limits, Price

DECIDING = (
    "temperature",
    "candidates",
    "attempts",
    "reflection",
    "history",
    "max_repair",
    "context",
    "shuffle_scores",
    "rename_layers",
)
"""Settings that decide what is proposed. A study keeps them, with the name of the model."""


class LLMSection(Settings):
    """The language model, what it may cost, and how it is asked.

    The key of an endpoint is not a setting. It comes from the environment.
    """

    title: ClassVar[str] = "recipe"
    section: ClassVar[str] = "llm"

    url: str | None = None
    """Base URL of an endpoint, such as ``https://HOST/v1``; None for a model on this machine."""
    model: str | None = None
    """Name of the endpoint's model; or a ``.gguf`` file, or a folder with a model."""
    timeout: Annotated[float, Field(gt=0, le=86_400)] = 300.0
    """Most seconds of a request."""
    retries: Annotated[int, Field(ge=0, le=20)] = 3
    """Most attempts of a request after the first one."""

    calls: Annotated[int, Field(ge=0)] | None = None
    """Most requests of a study; default: as many as its trials need."""
    tokens: Annotated[int, Field(ge=0)] | None = None
    """Most tokens of a study, read and written."""
    cost: Annotated[float, Field(ge=0)] | None = None
    """Most money of a study, in the currency of `price`."""
    seconds: Annotated[float, Field(ge=0)] | None = None
    """Most seconds that a study waits for replies."""
    price: str | None = None
    """Price of a million tokens read and written, such as ``2.5/10``."""
    required: bool = False
    """Stop if the model fails, instead of going on with mutations of the best candidate."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    """Temperature. It rises while the search stagnates."""
    candidates: Annotated[int, Field(ge=1, le=64)] = 4
    """Candidates in a reply."""
    attempts: Annotated[int, Field(ge=1, le=20)] = 3
    """Replies in a row without a new candidate after which mutations take over."""
    reflection: Annotated[int, Field(ge=0)] = 0
    """Generations after which the model writes down lessons; 0 for never."""
    history: Annotated[int, Field(ge=2, le=200)] = 14
    """Scored candidates in a request."""
    max_repair: Annotated[float, Field(ge=0, le=10)] = 0.75
    """Largest share of a candidate that may be changed to meet the budget."""
    context: Annotated[int, Field(ge=512)] = 8192
    """Most tokens of a request and its reply together."""
    shuffle_scores: bool = False
    """Show scores that belong to other candidates, for experiments."""
    rename_layers: bool = False
    """Show layers under other numbers, for experiments."""

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.url is not None:
            check_endpoint_url(self.url)
            if self.model is None:
                raise ValueError("`llm_url` names an endpoint: name its model with `llm_model`")
        if self.cost is not None and self.price is None:
            raise ValueError("`llm_cost` needs the price of the tokens: give `llm_price`")
        if self.price is not None:
            self.prices  # noqa: B018 (it is read, to check it)
        return self

    @property
    def prices(self) -> Price | None:
        """Price of the tokens; None if it is not known.

        Raises:
            ValueError: it cannot be read.
        """
        if self.price is None:
            return None
        words = self.price.split("/")
        try:
            read, written = (float(word) for word in words)
        except ValueError:
            raise ValueError(
                f"`llm_price` {self.price!r} cannot be read: give the price of a million tokens "
                f"read and written, as in 2.5/10"
            ) from None
        if not (0 <= read < 1e9 and 0 <= written < 1e9):
            raise ValueError(f"`llm_price` {self.price!r}: a price is not negative")
        return Price(read, written)

    @property
    def limits(self) -> Limits:
        """What a study may spend."""
        return Limits(self.calls, self.tokens, self.cost, self.seconds)

    def portable(self) -> Self:
        """Return the section without the address of an endpoint and the folders of this machine."""
        model = self.model
        if model is not None and self.url is None:
            model = Path(model).name
        return self.model_copy(update={"url": None, "model": model})
