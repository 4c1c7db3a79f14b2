"""Renderers of a report: the page, images, CSV files and Markdown."""
