"""The web pages of the service: Jinja2 templates, style sheet, script, and what they show."""
