"""The options of the commands. Each is defined once, and means the same on every command.

A command may change the default of an option, or require it (see `SharedOption.variant`).
"""
