"""Runs the calls of many threads and asyncio tasks on one model, token by token in common steps.

No thread is needed for calls that block. The first caller leads: it runs the steps of all calls until its own has what
it waits for, and then wakes another caller to lead. The others wait for their tokens. Calls of asyncio tasks have a
thread that leads for them; it ends after a second without such calls.

Only the leader changes the state of the engine. All others only append to deques, which are safe to use in signal
handlers and finalizers, and in the child of a fork. A forked child starts with an empty state: its calls are computed
again.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any
from weakref import WeakSet

from fastattn.errors import FastattnError, InputError
from fastattn.generation.call import Call, Draw, Failure
from fastattn.generation.page_plan import IDLE_BYTES, KvStats, PagePlan
from fastattn.generation.scheduler import ALONE_TOKENS, BESIDE_TOKENS, Scheduler
from fastattn.generation.structured import Grammars
from fastattn.graph.executor import Executor, PagedExecutor

RUN_AHEAD = 16  # tokens of a stream that other callers' steps draw before it waits for its consumer
_LOOK_AGAIN = 0.25  # seconds after which a waiting caller checks whether it can lead
_LINGER = 1.0  # seconds until the thread for asyncio tasks ends
_NESTED = (
    "expected no call within a call of the same thread; do not call fastattn in a signal handler or in a function that "
    "computes weights"
)


class Engine:
    """The calls on one executor. Any thread may use it.

    kv_bytes: limit for keys and values; None: no limit. idle_bytes: limit for those that stay for later calls.
    """

    def __init__(self, executor: Executor, *, kv_bytes: int | None = None, idle_bytes: int = IDLE_BYTES) -> None:
        self._executor, self._kv_bytes, self._idle_bytes = executor, kv_bytes, idle_bytes
        # Executors of draft models whose vocabulary was compared with that of this one.
        self.assistants: WeakSet[Executor] = WeakSet()
        self._processes: dict[int, _Process] = {}
        self.grammars = Grammars()

    @property
    def executor(self) -> Executor:
        """The executor that runs the steps."""
        return self._executor

    def submit(self, call: Call) -> None:
        """Add a call. Its tokens come from `take`, `draws` or `take_async`. Raises OutOfMemory if it can never run."""
        process = self._here()
        for request in call.waiting:
            process.pages.check(request)
        call.process = process
        process.arrivals.append(call)

    def draws(self, call: Call) -> Generator[Draw]:
        """Submit a call and yield its draws. Closing the iterator stops the work."""
        try:
            self.submit(call)
            while (draw := self.take(call)) is not None:
                yield draw
        finally:
            try:
                self.cancel(call)
            except BaseException:  # of a signal handler
                self.cancel(call)
                raise

    def take(self, call: Call) -> Draw | None:
        """Return the next draw of a call; wait for it, or run steps. None at the end. Raises the error of the call."""
        may_lead = True
        while True:
            done, draw = call.done, call.take()
            if draw is not None or done:
                return draw
            process = self._process_of(call)
            process.check_not_nested()
            call.listening = True  # before the attempt to lead, so that a leader that ends meanwhile rings
            finished = False
            try:
                if may_lead and process.try_lead():
                    call.listening = False
                    may_lead, finished = process.lead_for(call), True
            finally:
                try:
                    process.stop_leading(finished=finished)
                except BaseException:  # a signal handler interrupted it; in this frame, so that none can come between
                    process.stop_leading(finished=False)
                    raise
            if finished:
                continue
            if not call.ready and not call.done:
                call.wait(_LOOK_AGAIN)
            may_lead = True

    async def take_async(self, call: Call) -> Draw | None:
        """Return the next draw of a call like `take`, while the steps run in another thread."""
        import asyncio

        loop = asyncio.get_running_loop()
        call.background = True
        while True:
            done, draw = call.done, call.take()
            if draw is not None or done:
                return draw
            process = self._process_of(call)
            future = loop.create_future()
            call.on_ring = partial(loop.call_soon_threadsafe, _resolve, future)
            call.listening = True
            if not call.ready and not call.done:
                process.wake_driver()
                await future

    def cancel(self, call: Call) -> None:
        """Stop a call; its pages are free after the running step. Does nothing at its end, and may be called twice."""
        call.ready.clear()
        if call.process is not None and not call.done:
            call.process.do_soon(partial(_remove, call.process, call))

    async def cancel_async(self, call: Call) -> None:
        """Stop a call like `cancel`, and wait until its pages are free."""
        import asyncio

        self.cancel(call)
        if call.process is not None:
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            call.process.do_soon(partial(_resolve_from_thread, loop, future))
            await future

    def run(self, job: Callable[[PagePlan], Any]) -> Any:
        """Run a function between two steps and return its result."""
        process, results = self._here(), SimpleQueue[tuple[bool, Any]]()
        process.check_not_nested()

        def do() -> None:
            try:
                results.put((True, job(process.pages)))
            except Exception as error:
                results.put((False, error))

        process.do_soon(do)
        fine, result = results.get()
        if not fine:
            raise result
        return result

    def do_soon(self, job: Callable[[PagePlan], Any]) -> None:
        """Run a function before the next step, or now if none runs. Safe in finalizers."""
        process = self._processes.get(os.getpid())
        if process is not None:
            process.do_soon(partial(job, process.pages))

    def use(self, make: Callable[[Executor], Executor]) -> None:
        """Run later steps on another executor of the same model: what `make` returns for the present one.

        Calls of several threads come one after the other.
        """

        def change(process: _Process) -> None:
            self._executor = make(self._executor)
            process.scheduler.use(self._executor)

        process = self._here()
        self.run(lambda _: change(process))

    def stats(self) -> KvStats:
        """Return the numbers of pages, and the memory of draft models."""
        draft_bytes = sum(_bytes_in_use(one) for one in self.assistants if one is not self._executor)
        return self._here().pages.stats()._replace(draft_bytes=draft_bytes)

    def close(self) -> None:
        """Free the pages that are kept for later calls. Running calls end with the executor."""
        self._processes = {}
        self._executor.close()

    def _here(self) -> _Process:
        process = self._processes.get(os.getpid())
        if process is None:
            process = self._processes.setdefault(
                os.getpid(), _Process(self._executor, self._kv_bytes, self._idle_bytes)
            )
        return process

    def _process_of(self, call: Call) -> _Process:
        """Return the state of this process; after a fork, or a close, submit the call again."""
        process: _Process | None = call.process
        if process is None or process.pid != os.getpid():
            process = self._here()
            call.restart()
            call.process = process
            process.arrivals.append(call)
        return process


def _note(first: BaseException, other: Exception) -> None:
    """Add a further error of the same call to the first one."""
    add_note = getattr(first, "add_note", None)  # from Python 3.11 on
    if add_note is not None:
        add_note(f"another text of the call failed too: {type(other).__name__}: {other}")


def _bytes_in_use(executor: Executor) -> int:
    """Return the bytes of the keys and values that the caches of an executor have; 0 if it was closed."""
    try:
        return executor.kv_pages_in_use * executor.kv_page_bytes if isinstance(executor, PagedExecutor) else 0
    except InputError:
        return 0


def _remove(process: _Process, call: Call) -> None:
    process.scheduler.remove(call)
    call.ring()


def _resolve_from_thread(loop: Any, future: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the event loop was closed
        loop.call_soon_threadsafe(_resolve, future)


def _resolve(future: Any) -> None:
    if not future.done():
        future.set_result(None)


class _Process:
    """The state of an engine in one process."""

    def __init__(self, executor: Executor, kv_bytes: int | None, idle_bytes: int) -> None:
        self.pid = os.getpid()
        self.pages = PagePlan(
            executor, limit_bytes=kv_bytes, share=True, idle_bytes=idle_bytes, step_tokens=ALONE_TOKENS
        )
        self.scheduler = Scheduler(executor, pages=self.pages, prompt_tokens=(ALONE_TOKENS, BESIDE_TOKENS))
        self.arrivals: deque[Call] = deque()
        self._jobs: deque[Callable[[], None]] = deque()
        self._lead = threading.RLock()  # a signal handler may try to take it again in the same thread
        # threading.Condition uses this method too; the type stubs leave it out.
        self._owns_lead: Callable[[], bool] = self._lead._is_owned  # type: ignore[attr-defined]
        self._leader: int | None = None
        self._busy = False  # whether a leader is between the beginning and the end of its work
        self._driver: threading.Thread | None = None
        self._driver_bell: SimpleQueue[None] = SimpleQueue()

    # -- leadership ---------------------------------------------------------------------------------------------------

    def check_not_nested(self) -> None:
        """Raise InputError if this thread leads already. End a lead that a signal handler left behind."""
        if self._leader != threading.get_ident():
            return
        frame = sys._getframe(1).f_back
        while frame is not None:
            if frame.f_code in _LEADING and self in (frame.f_locals.get("self"), frame.f_locals.get("process")):
                raise InputError(_NESTED)
            frame = frame.f_back
        self.stop_leading(finished=False)

    def try_lead(self) -> bool:
        """Become the leader if there is none. Call `check_not_nested` before, and `stop_leading` after, in any case."""
        if not self._lead.acquire(blocking=False):
            return False
        self._leader = threading.get_ident()
        if not self._owns_lead():  # a signal handler led, and ended, before the line above
            return False
        if self._busy:  # the last leader was interrupted
            self.scheduler.recover()
        self._busy = True
        return True

    def stop_leading(self, *, finished: bool) -> None:
        """Let another caller lead, and wake one that waits. Does nothing in a thread that does not lead."""
        if not self._owns_lead():
            return
        if finished:
            self._busy = False
        while True:
            self._leader = None
            while self._owns_lead():
                self._lead.release()
            if not self._jobs or not self.try_lead():
                break
            self._do_jobs()
            self._busy = False
        calls = [*self.scheduler.calls, *self.arrivals]
        threads = [call for call in calls if call.listening and call.on_ring is None]
        if threads:
            min(threads, key=lambda call: call.in_main_thread).ring()
        elif any(call.background for call in calls):
            self._driver_bell.put(None)

    def lead_for(self, call: Call) -> bool:
        """Run steps until a call has something to take; return False to let another thread lead.

        The main thread lets others lead, because a signal handler may interrupt it at any place.
        """
        while True:
            self._begin_step()
            if call.ready or call.done:
                return True
            self._step()
            if call.ready or call.done:
                return True
            if call.in_main_thread and any(
                other.listening and not other.in_main_thread for other in [*self.scheduler.calls, *self.arrivals]
            ):
                return False

    def do_soon(self, job: Callable[[], None]) -> None:
        """Run a job before the next step; now if no step runs."""
        self._jobs.append(job)
        if self._leader == threading.get_ident():
            return  # a finalizer or signal handler in the leader
        finished = False
        try:
            if self.try_lead():
                self._do_jobs()
                finished = True
        finally:
            try:
                self.stop_leading(finished=finished)
            except BaseException:
                self.stop_leading(finished=False)
                raise

    # -- steps; only the leader calls these ---------------------------------------------------------------------------

    def _begin_step(self) -> None:
        self._deliver()  # what an interrupted leader left
        while self.arrivals:
            self.scheduler.add(self.arrivals[0])
            self.arrivals.popleft()
        if self._jobs:
            self._do_jobs()

    def _do_jobs(self) -> None:
        while self.arrivals:  # a job may cancel one of them
            self.scheduler.add(self.arrivals[0])
            self.arrivals.popleft()
        while self._jobs:
            self._jobs[0]()
            self._jobs.popleft()  # after the job, which does no harm if an interruption makes it run again

    def _step(self) -> None:
        """Run a step and deliver its results. Errors of fastattn go to the calls.

        Other exceptions propagate, such as those of signal handlers; the next leader then computes the step again.
        """
        try:
            self.scheduler.step()
        except MemoryError as error:
            n_running, affected = self.scheduler.n_running, self.scheduler.running_calls()
            self.scheduler.recover(most=max(1, n_running // 2))
            if n_running < 2:
                self._fail(affected, error)
        except FastattnError as error:
            affected = self.scheduler.running_calls()
            self.scheduler.recover()
            self._fail(affected, error)
        self._deliver()

    def _fail(self, calls: list[Call], error: Exception) -> None:
        """End these calls with an error; all of them if there are none, so that no caller waits forever."""
        for call in calls or list(self.scheduler.calls):
            self._end(call, error)

    def _end(self, call: Call, error: Exception, others: Iterable[Exception] = ()) -> None:
        """End a call with an error. others: further errors of the same step, which become notes of this one."""
        if call.error is None:
            for other in others:
                if other is not error:
                    _note(error, other)
            call.error = error  # last, because the caller may raise it from now on; and before the call is done
        self.scheduler.remove(call)
        call.ring()

    def _deliver(self) -> None:
        results = self.scheduler.results
        while results:
            result = results[0]
            call = result.request.call
            if call is not None and isinstance(result, Failure):
                failures = [one.error for one in results if isinstance(one, Failure) and one.request.call is call]
                self._end(call, result.error, failures[1:])
            elif call is not None and isinstance(result, Draw):
                call.put(result)
                if call.abandoned:
                    self.scheduler.remove(call)
            results.popleft()

    # -- the thread for asyncio tasks ---------------------------------------------------------------------------------

    def wake_driver(self) -> None:
        """Make the thread that leads for asyncio tasks look for work; start it if there is none."""
        if self._driver is None or not self._driver.is_alive():
            self._driver = threading.Thread(target=self._drive, name="fastattn-engine", daemon=True)
            self._driver.start()
        self._driver_bell.put(None)

    def _has_background(self) -> bool:
        return any(call.background and not call.paused for call in [*self.scheduler.calls, *self.arrivals])

    def _drive(self) -> None:
        this = threading.current_thread()
        while True:
            if not self._has_background():
                try:
                    self._driver_bell.get(timeout=_LINGER)
                except Empty:
                    self._driver = None
                    if self._has_background():  # it came before the line above
                        self._driver = this
                        continue
                    return
                continue
            finished = False
            try:  # no signal handler runs in this thread
                if self.try_lead():
                    self._begin_step()
                    while self._has_background():
                        try:
                            self._step()
                        except Exception as error:
                            self.scheduler.recover()
                            self._fail([call for call in self.scheduler.calls if call.background], error)
                        self._begin_step()
                    finished = True
            finally:
                self.stop_leading(finished=finished)
            if finished:
                continue
            with contextlib.suppress(Empty):
                self._driver_bell.get(timeout=_LOOK_AGAIN)


# Functions in which a thread may lead.
_LEADING = {function.__code__ for function in (Engine.take, _Process.do_soon, _Process._drive)}
