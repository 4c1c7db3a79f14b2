"""What must not change unnoticed: trials of seeded studies, cache keys, stored files, and the shape
of JSON documents.

`python -m tests.golden.record` writes the files beside this one again. Do that only for a change
that is meant to alter them, and say so in CHANGELOG.md.
"""
