"""From a recipe to a verified checkpoint: the session, the search loop, and what follows it."""
