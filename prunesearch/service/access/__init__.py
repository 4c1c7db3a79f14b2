"""Who may use the service: tokens, sessions of browsers, roles, and the log of changes."""
