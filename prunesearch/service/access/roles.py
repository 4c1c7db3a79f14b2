"""The roles of users."""

from dataclasses import dataclass
from typing import Literal

Role = Literal["viewer", "submitter", "admin"]
"""Role of a token. Each role may do everything that the one before it may do."""
ROLES: tuple[Role, ...] = ("viewer", "submitter", "admin")


@dataclass(frozen=True)
class User:
    """Who sends a request.

    Attributes:
        name: name of the token. Jobs belong to this name.
        role: role of the token.
    """

    name: str
    role: Role

    def may(self, role: Role) -> bool:
        """Return whether the user has a role, or one that includes it."""
        return ROLES.index(self.role) >= ROLES.index(role)
