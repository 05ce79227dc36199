"""Gives jobs to slots until none is left: retries, slots that go away and come back, and a clean stop."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ...core.errors import Interrupted, LikenessError
from .manifest import RUNNING, WAITING, Manifest, Record
from .targets import JobFailed, Prompt, Slot, SlotLost, Task

log = logging.getLogger(__name__)

IDLE_S = 0.05  # between two looks for a job, where none is due
PATIENCE_S = 120.0  # with no slot at all before the batch gives up
RETRY_S = 2.0  # before the first retry; doubled for each further one


@dataclass(frozen=True, kw_only=True)
class Told:
    """What happened on a slot: ``what`` is start, now, done, failed, again, lost or back."""

    slot: str
    what: str
    record: Record | None = None
    words: str = ""
    seconds: float = 0.0


class Dispatch:
    """``run`` returns when every job is done or failed. ``prompt_of`` builds a job's graph."""

    def __init__(
        self,
        manifest: Manifest,
        slots: Sequence[Slot],
        prompt_of: Callable[[Record], Prompt],
        *,
        retries: int = 2,
        retry_s: float = RETRY_S,
        patience_s: float = PATIENCE_S,
        tell: Callable[[Told], None] = lambda told: None,
    ) -> None:
        self.manifest, self.slots, self.prompt_of = manifest, slots, prompt_of
        self.retries, self.retry_s, self.patience_s = retries, retry_s, patience_s
        self.tell = tell
        self.ending = threading.Event()
        self.alive = {slot.name for slot in slots}
        manifest.keep_tickets(self.alive)
        self.problem: BaseException | None = None

    def run(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Raises Interrupted when ``stopped`` became true, LikenessError when no slot is left."""
        threads = [threading.Thread(target=self._serve, args=(slot,), daemon=True) for slot in self.slots]
        for thread in threads:
            thread.start()
        try:
            self._watch(threads, stopped)
        finally:
            self.ending.set()
            for slot, thread in zip(self.slots, threads, strict=True):
                while thread.is_alive():  # again and again: a job may have begun just behind the last word
                    slot.stop()
                    thread.join(0.5)
        if self.problem is not None:
            raise self.problem

    def _watch(self, threads: Sequence[threading.Thread], stopped: Callable[[], bool]) -> None:
        last_alive_s = time.monotonic()
        while any(thread.is_alive() for thread in threads) and self.problem is None:
            if stopped():
                raise Interrupted("Stopped as asked. The same command goes on from here.")
            if self.alive:
                last_alive_s = time.monotonic()
            elif time.monotonic() - last_alive_s > self.patience_s:
                raise LikenessError(
                    f"No target has answered for {self.patience_s:.0f} s",
                    fix="Start one again; the same command goes on with the jobs that are left",
                )
            threads[0].join(IDLE_S)

    def _serve(self, slot: Slot) -> None:
        try:
            for record in self._jobs(slot):
                if not self._one(slot, record) and not self._wait_for(slot):
                    return
        except BaseException as error:  # the manifest cannot be written: no job must start any more
            self.problem = self.problem or error

    def _jobs(self, slot: Slot) -> Iterator[Record]:
        while not self.ending.is_set():
            record = self.manifest.take(slot.name)
            if record is not None:
                yield record
            elif self._nothing_left():
                return
            else:
                self.ending.wait(IDLE_S)

    def _nothing_left(self) -> bool:
        counts = self.manifest.counts()
        return not counts[WAITING] and not counts[RUNNING]  # a running one may yet come back

    def _one(self, slot: Slot, record: Record) -> bool:
        """Run one job and write down how it ended. False when the slot is lost."""
        began_s = time.monotonic()
        self.tell(Told(slot=slot.name, what="start", record=record))
        try:
            task = Task(
                number=record.number, key=record.key, ticket=record.ticket, prompt=self.prompt_of(record)
            )
            result = slot.run(task, lambda words: self.tell(Told(slot=slot.name, what="now", words=words)))
        except JobFailed as error:
            self._failed(slot, record, error, time.monotonic() - began_s)
        except SlotLost as error:
            self._lost(slot, record, str(error), time.monotonic() - began_s)
            return False
        except Interrupted:
            if self.ending.is_set():
                self.manifest.back(record.number)
            else:
                self._failed(slot, record, JobFailed("It was interrupted there", again=True), 0.0)
        except LikenessError as error:
            self._failed(slot, record, JobFailed(str(error), again=False), time.monotonic() - began_s)
        else:
            seconds = time.monotonic() - began_s
            self.manifest.done(record.number, result, seconds)
            self.tell(Told(slot=slot.name, what="done", record=record, seconds=seconds))
        return True

    def _failed(self, slot: Slot, record: Record, error: JobFailed, seconds: float) -> None:
        if error.again and record.attempts < self.retries:
            self.manifest.again(record.number, str(error), self.retry_s * 2**record.attempts)
            self.tell(Told(slot=slot.name, what="again", record=record, words=str(error)))
        else:
            self.manifest.failed(record.number, str(error), seconds)
            self.tell(Told(slot=slot.name, what="failed", record=record, words=str(error), seconds=seconds))

    def _lost(self, slot: Slot, record: Record, reason: str, seconds: float) -> None:
        self.alive.discard(slot.name)
        if self.ending.is_set():
            self.manifest.back(record.number)
            return
        log.warning("%s; its job goes to another", reason)
        what = "lost" if self.manifest.lost(record.number, slot.name, reason) else "failed"
        self.tell(Told(slot=slot.name, what=what, record=record, words=reason, seconds=seconds))

    def _wait_for(self, slot: Slot) -> bool:
        """Whether a lost slot came back before the others finished all jobs."""
        wait_s = 0.2
        while not self.ending.is_set() and not self._nothing_left():
            if slot.revive():
                self.alive.add(slot.name)
                self.tell(Told(slot=slot.name, what="back"))
                return True
            self.ending.wait(wait_s)
            wait_s = min(wait_s * 2, 10.0)
        return False
