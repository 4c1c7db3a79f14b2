"""The HTTP interface of the service: `create_app` makes it."""
