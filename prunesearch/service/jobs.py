"""`Jobs`: submit, list, show and change the jobs of a service.

A job is a workflow in the queue (`queue`), and a record with what only the service knows
(`tables.JOB_RECORDS`). Runners execute the workflows (`runner`). All state is in the database, so
any number of processes can have a `Jobs` at the same time.
"""

import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import sqlalchemy
from sqlalchemy.exc import IntegrityError

from prunesearch.errors import ConflictError, NotFoundError
from prunesearch.runtime.json_values import Json, JsonObject
from prunesearch.service import queue
from prunesearch.service.allowed import AllowedRequest, check
from prunesearch.service.database import open_database
from prunesearch.service.event_log import EventLog, serialized
from prunesearch.service.job import (
    FINAL,
    Job,
    JobPage,
    JobRequest,
    JobState,
    StageRecord,
    StoredEvent,
)
from prunesearch.service.job_reader import JobReader
from prunesearch.service.job_state import STAGES
from prunesearch.service.runners import RunnerInfo, list_runners
from prunesearch.service.settings import ServiceSettings
from prunesearch.service.tables import JOB_EVENTS, JOB_RECORDS
from prunesearch.studies import persistence


class Jobs:
    """The jobs of a service. Its methods can be called from several threads.

    Args:
        settings: settings of the service. The database is opened, and its tables are made.

    Raises:
        StorageError: the database cannot be used.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self._engine = open_database(settings.database)
        self._client = queue.open_client(settings.database)
        self._reader = JobReader(self._engine)
        self._log = EventLog(self._engine)

    def submit(
        self, request: JobRequest, user: str, idempotency_key: str | None = None
    ) -> tuple[Job, bool]:
        """Submit a job.

        Args:
            request: what is to be done.
            user: name of the token that submits it.
            idempotency_key: text that a client chooses for a request. The same request with the
                same key of the same user is one job, however often it is sent.

        Returns:
            The job, and whether it is new.

        Raises:
            InputError: the recipe is refused.
            ConflictError: the key was used with another request.
        """
        # 1. Refuse what the operator does not allow.
        allowed = check(request, self.settings)
        document: JsonObject = {"recipe": allowed.recipe.document(), **request.document()}
        # 2. Choose the identifier. With a key, the same request has the same one.
        if idempotency_key is None:
            job = f"job-{secrets.token_hex(8)}"
        else:
            digest = hashlib.sha256(serialized([user, idempotency_key]).encode()).hexdigest()
            job = f"job-{digest[:16]}"
            if self._is_repeated(job, document):
                return self.get(job), False
            # A deleted job may have left its export, which would count as that of the new job.
            if self._folder(job).exists():
                raise ConflictError(
                    "the idempotency key was used by a job that was deleted, whose export is kept: "
                    "give another key"
                )
        # 3. Refuse a study of another recipe now, not when the job runs.
        persistence.refuse_others(self.settings.storage, [(allowed.study, allowed.located)])
        # 4. Write the job.
        if self._insert(job, document, allowed, user):
            return self.get(job), True
        # Another request with this key was faster.
        self._is_repeated(job, document)
        return self.get(job), False

    def check(self, request: JobRequest) -> AllowedRequest:
        """Check a request as `submit` does, without submitting it.

        Raises:
            InputError: the recipe is refused.
        """
        allowed = check(request, self.settings)
        persistence.refuse_others(self.settings.storage, [(allowed.study, allowed.located)])
        return allowed

    def list(
        self,
        state: JobState | None = None,
        study: str | None = None,
        submitted_by: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> JobPage:
        """Return a page of jobs, the newest first.

        Args:
            state: state of the jobs. None: all. This holds for the other conditions too.
            study: name of their study.
            submitted_by: name of the token that submitted them.
            limit: largest number of jobs.
            cursor: `JobPage.next` of the page before. None: the first page.

        Raises:
            InputError: the cursor is not one that a page gave.
        """
        return self._reader.page(state, study, submitted_by, limit, cursor)

    def get(self, job_id: str) -> Job:
        """Return a job.

        Raises:
            NotFoundError: the job does not exist.
        """
        return self._reader.job(job_id)

    def pause(self, job_id: str) -> Job:
        """Stop a job so that it can be resumed. What is finished is kept.

        Raises:
            NotFoundError: the job does not exist.
            ConflictError: the job has ended.
        """
        return self._cancel(job_id, paused=True)

    def cancel(self, job_id: str) -> Job:
        """End a job. What is finished is kept in its study and in the cache.

        Raises:
            NotFoundError: the job does not exist.
            ConflictError: the job has ended.
        """
        return self._cancel(job_id, paused=False)

    def _cancel(self, job_id: str, *, paused: bool) -> Job:
        """Cancel the workflow of a job. The flag says whether this is a pause."""
        wanted: JobState = "paused" if paused else "cancelled"
        job = self.get(job_id)
        # Somebody else may pause or cancel it at the same moment.
        for _ in range(5):
            if job.state == wanted:
                break
            if job.state in FINAL:
                verb = "pause" if paused else "cancel"
                raise ConflictError(f"cannot {verb} {job_id}: it is {job.state}")
            # The flag comes first: a cancelled workflow without it is a cancelled job.
            self._change(job_id, paused=paused)
            self._client.cancel_workflow(job_id)
            job = self.get(job_id)
        self._log.tell_states(job_id)
        return self.get(job_id)

    def resume(self, job_id: str) -> Job:
        """Put a paused job back into the queue.

        Raises:
            NotFoundError: the job does not exist.
            ConflictError: the job has ended.
        """
        job = self.get(job_id)
        if job.state in FINAL:
            raise ConflictError(
                f"cannot resume {job_id}: it is {job.state}; submit it again, which costs only "
                f"what is not in the cache"
            )
        if job.state == "paused":
            # The flag has a meaning only while the workflow is cancelled, so it is cleared last.
            self._client.resume_workflow(job_id, queue_name=queue.QUEUE)
            self._change(job_id, paused=False)
            self._log.tell_states(job_id)
        return self.get(job_id)

    def stop(self, job_id: str) -> Job:
        """End the search of a job early. The following stages run with the best so far.

        The generation that is under way is finished first, and there is at least one result.

        Raises:
            NotFoundError: the job does not exist.
            ConflictError: the job is paused or has ended.
        """
        job, asked = self.get(job_id), self._reader.stop_asked(job_id)
        if job.state == "paused":
            raise ConflictError(f"cannot stop {job_id}: it is paused; resume it first")
        if job.state in FINAL and not (asked and job.state == "finished"):
            raise ConflictError(f"cannot stop {job_id}: it is {job.state}")
        if not asked:
            self._change(job_id, stop_asked=True)
        return self.get(job_id)

    def delete(self, job_id: str, export: bool = False) -> None:
        """Delete a job and its events. Its study and its evaluations are kept.

        Args:
            job_id: identifier of the job.
            export: delete the export of the job, too.

        Raises:
            NotFoundError: the job does not exist.
            ConflictError: the job has neither ended nor is it paused.
        """
        job = self.get(job_id)
        if job.state not in FINAL and job.state != "paused":
            raise ConflictError(f"cannot delete {job_id}: it is {job.state}; cancel it first")
        # The record goes last, so that a deletion that is interrupted can be repeated.
        if export:
            shutil.rmtree(self._folder(job_id), ignore_errors=True)
        self._client.delete_workflow(job_id)
        with self._engine.begin() as connection:
            for table in (JOB_EVENTS, JOB_RECORDS):
                connection.execute(sqlalchemy.delete(table).where(table.c.job == job_id))

    def events(
        self,
        job_id: str,
        after: int = 0,
        limit: int = 1000,
        kinds: Collection[str] | None = None,
    ) -> Sequence[StoredEvent]:
        """Return the events of a job after a sequence number, in order.

        Args:
            job_id: identifier of the job.
            after: sequence number.
            limit: largest number of events that are returned.
            kinds: kinds of events. None: all.
        """
        return self._log.read(job_id, after, limit, kinds)

    def last_events(self, job_ids: Iterable[str]) -> dict[str, int]:
        """Return the sequence number of the last event of each job, with one query.

        Jobs that do not exist are left out.
        """
        return self._log.last(job_ids)

    def export_folder(self, job_id: str) -> Path:
        """Return the folder of the verified export of a job.

        Raises:
            NotFoundError: the job does not exist, or it has no export.
        """
        folder = self._folder(job_id)
        # A job that failed may have left a folder that was not verified.
        if not self.get(job_id).exported or not folder.is_dir():
            raise NotFoundError(f"{job_id} has no export")
        return folder

    def result(self, job_id: str) -> JsonObject | None:
        """Return the report of the command, as `--json` prints it; None before the end.

        Raises:
            NotFoundError: the job does not exist.
        """
        self.get(job_id)
        found = self._client.list_workflows(workflow_ids=[job_id], load_input=False)
        output: Json = found[0].output if found else None
        return output if isinstance(output, dict) else None

    def runners(self) -> Sequence[RunnerInfo]:
        """Return the runners that were seen, the latest first."""
        return list_runners(self._engine)

    def counts(self) -> Mapping[JobState, int]:
        """Return the number of jobs in each state."""
        return self._reader.counts()

    def close(self) -> None:
        """Close the connections to the database."""
        queue.close_client(self._client)
        self._engine.dispose()

    def _folder(self, job_id: str) -> Path:
        """Return the folder of a job's export. The identifier is one of a job that exists."""
        return self.settings.exports / job_id

    def _change(self, job_id: str, **values: bool) -> None:
        """Change the record of a job that has not ended."""
        records = JOB_RECORDS.c
        with self._engine.begin() as connection:
            connection.execute(
                sqlalchemy.update(JOB_RECORDS)
                .where(records.job == job_id, records.told.not_in(sorted(FINAL)))
                .values(**values)
            )

    def _is_repeated(self, job_id: str, document: JsonObject) -> bool:
        """Return whether a job of this request exists already.

        Raises:
            ConflictError: a job with this identifier has another request.
        """
        stored = self._reader.request(job_id)
        if stored is None:
            return False
        if stored != json.loads(serialized(document)):
            raise ConflictError(
                "the idempotency key was used with another request: give each request a key of "
                "its own"
            )
        return True

    def _insert(
        self, job_id: str, document: JsonObject, allowed: AllowedRequest, user: str
    ) -> bool:
        """Write a job: its record, its first event and its workflow, in one transaction.

        Returns:
            False if a job with this identifier exists.
        """
        command = str(document["command"])
        stages = [StageRecord(name, "waiting") for name in STAGES[command]]
        record = {
            "job": job_id,
            "study": allowed.study,
            "submitted_by": user,
            "created": time.time(),
            "command": command,
            "trials": allowed.trials,
            "request": serialized(document),
            "stages": serialized(stages),
            "exported": False,
            "paused": False,
            "stop_asked": False,
            "told": "queued",
            "last_event": 1,
        }
        try:
            with self._engine.begin() as connection:
                connection.execute(sqlalchemy.insert(JOB_RECORDS).values(**record))
                self._log.first(connection, job_id)
                self._client.enqueue_in_transaction(
                    connection,
                    {
                        "workflow_name": queue.WORKFLOW,
                        "queue_name": queue.QUEUE,
                        "workflow_id": job_id,
                        "app_version": queue.VERSION,
                        "authenticated_user": user,
                        "attributes": {"study": allowed.study, "command": command},
                    },
                    document,
                )
        except IntegrityError:
            return False
        return True
