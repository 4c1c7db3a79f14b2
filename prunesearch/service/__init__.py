"""The service: jobs that run on a server, its HTTP interface, its web pages, and its client."""
