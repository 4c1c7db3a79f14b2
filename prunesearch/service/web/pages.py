"""The web pages of the service, as one group of routes."""

from fastapi import FastAPI

from prunesearch.service.web import (
    admin_pages,
    job_pages,
    sign_in_pages,
    study_pages,
    submit_pages,
)


def add_to(app: FastAPI) -> None:
    """Add the routes of all pages."""
    for group in (sign_in_pages, job_pages, study_pages, submit_pages, admin_pages):
        group.add_to(app)
