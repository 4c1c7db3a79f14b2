"""The figures of a report: what they show, as plain values that a renderer draws."""
