"""How a pass ends whose result is not needed. It is imported without torch."""


class EvaluationCancelled(BaseException):
    """Raised between two blocks when nobody needs the result any more."""
