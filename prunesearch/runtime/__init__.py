"""The process: signals, secrets in what is shown, and failpoints of tests."""
