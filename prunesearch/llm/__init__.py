"""Language models that propose candidates: clients, budgets, and replies that are recorded."""
