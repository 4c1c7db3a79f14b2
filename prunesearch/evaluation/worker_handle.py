"""The parent's side of a worker process."""

import signal
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

from prunesearch.candidate import LayerSubset
from prunesearch.errors import RunError
from prunesearch.evaluation.worker import Build, Content, serve
from prunesearch.objectives.base import ChunkResult, ChunkWork, Work

_ATTEMPTS = 3  # deaths in a row after which a worker's candidates are taken as the cause


class WorkerHandle:
    """Handle of a worker process in its parent: the process, the pipe to it, and its share."""

    def __init__(
        self,
        context: SpawnContext,
        build: Build,
        number: int,
        content: Content,
        stop: Any,  # noqa: ANN401 (ctypes)
    ) -> None:
        self._context, self._build, self._number, self._stop = context, build, number, stop
        self._content = content
        self._share: Work = []
        self._done: set[tuple[int, LayerSubset]] = set()
        self._deaths = 0
        self._process: SpawnProcess | None = None
        self._start()

    def _start(self) -> None:
        """Start the process with SIGINT blocked, so that only the parent handles Ctrl-C."""
        line, theirs = self._context.Pipe()
        # The first process would otherwise start the resource tracker, which unblocks the signal.
        resource_tracker.ensure_running()
        # The worker inherits the signal mask.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process = self._context.Process(
                target=serve, args=(theirs, self._build, self._number, self._stop), daemon=True
            )
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self.line, self._process = line, process
        self._ready = False

    @property
    def busy(self) -> bool:
        """True if the worker has an unfinished share."""
        return bool(self._share)

    def assign(self, share: Work) -> None:
        """Give the worker a share. It is sent as soon as the worker has its model."""
        self._share, self._done, self._deaths = share, set(), 0
        if share and self._process is None:
            self._start()
        if share and self._ready:
            self._ask()

    def keep_back(self) -> None:
        """Take back a share that was not sent yet."""
        if not self._ready:
            self._share = []

    def receive(self) -> ChunkResult | Exception | None:
        """Receive one message.

        Returns:
            A result or an exception. None: the worker is ready, or its share is done.

        Raises:
            EOFError: the worker is dead.
        """
        try:
            message: ChunkResult | Exception | Content | None = self.line.recv()
        except OSError as error:  # the worker died while it sent the message
            raise EOFError from error
        if isinstance(message, Content):
            return self._begin(message)
        if isinstance(message, ChunkResult):
            self._done.add((message.chunk.index, message.candidate))
            self._deaths = 0
        else:
            self._share = []
        return message

    def _begin(self, content: Content) -> RunError | None:
        """Send the share to a worker that has its model. A worker with other content is ended."""
        difference = content.unlike(self._content)
        if difference is not None:
            self.end()
            return RunError(
                f"worker {self._number} found other content on disk than this process did "
                f"({difference.what} changed since the start: {difference.digests}): nothing of it "
                f"was used; run the command again"
            )
        self._ready = True
        self._ask()
        return None

    def restart(self) -> RunError | None:
        """Start a dead worker again for the rest of its share.

        Returns:
            The error if the worker has died too often; otherwise None.
        """
        # Find the part of the share that is not done.
        left: list[ChunkWork] = []
        for piece in self._share:
            missing: list[LayerSubset] = []
            for candidate in piece.candidates:
                if (piece.chunk.index, candidate) not in self._done:
                    missing.append(candidate)
            if missing:
                left.append(ChunkWork(piece.chunk, missing))
        # Release the dead process, and give up after several deaths in a row.
        deaths, self._share = self._deaths + 1, []
        self.end()
        if deaths == _ATTEMPTS:
            return RunError(
                f"worker {self._number} died {_ATTEMPTS} times over the same candidates (out of "
                f"memory?): "
                "give fewer `workers`; what was scored is kept"
            )
        # `assign` resets the number of deaths.
        self.assign(left)
        self._deaths = deaths
        return None

    def _ask(self) -> None:
        """Send the share."""
        try:
            self.line.send(self._share)
        except OSError:  # the worker is dead, and `receive` will raise
            return

    def end(self) -> None:
        """End the process and release it."""
        self._share, self._ready = [], False
        if self._process is None:
            return
        # An idle worker exits when its pipe is closed. A busy one is terminated, and then killed.
        self.line.close()
        for press in (self._process.terminate, self._process.kill):
            self._process.join(2)
            if self._process.is_alive():
                press()
        self._process.join()
        self._process.close()
        self._process = None
