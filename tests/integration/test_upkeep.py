"""Upkeep: background work in its turn, that gives way, gives up when told to, and takes effect in the loop's thread."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from tests.support.ground import Ground, check_all

from piper.errors import PiperError
from piper.ops.jobs import Jobs
from piper.ops.metrics import Metrics
from piper.silver.rewrite import Rewrite, partitions
from piper.upkeep import Duty, Hands, Upkeep
from piper.writer import Writer

SECONDS = 60.0


@dataclass
class Loop:
    """An open writer with upkeep beside it, whose jobs are done one after the other in a thread, as piperd does."""

    writer: Writer
    metrics: Metrics = field(default_factory=Metrics)
    is_behind: bool = False
    refusal: PiperError | None = None
    takes_jobs: bool = True

    def __post_init__(self) -> None:
        self._wake = anyio.Event()
        self.jobs = Jobs(lambda: self._wake.set(), lambda: self.refusal)

    def upkeep(self, *duties: Duty) -> Upkeep:
        made = Upkeep(
            duties, jobs=self.jobs, gold_lock=anyio.Lock(), metrics=self.metrics, is_behind=lambda: self.is_behind
        )
        made.open(self.writer)
        return made

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            if self.takes_jobs:
                await anyio.to_thread.run_sync(self.jobs.run_all, self.writer)


Scenario = Callable[[Loop, Upkeep], Awaitable[None]]


def play(ground: Ground, scenario: Scenario, duties: Sequence[Duty] = (), *, is_behind: bool = False) -> Metrics:
    """Run a scenario beside the loop and upkeep; fails when it does not end."""

    async def main() -> Metrics:
        with ground.writer() as writer, anyio.fail_after(SECONDS):
            loop = Loop(writer, is_behind=is_behind)
            async with _running(loop, loop.upkeep(*duties)) as upkeep:
                await scenario(loop, upkeep)
            return loop.metrics

    return anyio.run(main)


@asynccontextmanager
async def _running(loop: Loop, upkeep: Upkeep) -> AsyncIterator[Upkeep]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(loop.run)
        tasks.start_soon(upkeep.run)
        yield upkeep
        async with upkeep.halted():
            upkeep.close()
        tasks.cancel_scope.cancel()


async def seen(event: threading.Event) -> None:
    await anyio.to_thread.run_sync(event.wait, abandon_on_cancel=True)


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    ground = Ground(tmp_path)
    for _ in range(2):
        ground.simulate(50)
        ground.run("ingest", "seal", "publish", "export", "gold")
    return ground


def count(metrics: Metrics, name: str) -> float:
    return metrics.registry.get_sample_value(name, {"duty": "compact"}) or 0.0


def test_a_duty_that_the_ground_fails_is_counted_and_tried_again_while_others_go_on(ground: Ground) -> None:
    done, other = threading.Event(), threading.Event()
    failures = [OSError("the disk is full"), PiperError("in use")]

    def step(_hands: Hands) -> bool:
        if failures:
            raise failures.pop()
        done.set()
        return False

    async def scenario(_loop: Loop, _upkeep: Upkeep) -> None:
        await seen(other)
        await seen(done)

    duties = [Duty("compact", 0.01, step), Duty("prune", 0.01, lambda _hands: bool(other.set()))]
    metrics = play(ground, scenario, duties)
    assert count(metrics, "piper_upkeep_errors_total") == 2


def test_a_bug_in_a_duty_is_not_hidden(ground: Ground) -> None:
    def step(_hands: Hands) -> bool:
        raise ZeroDivisionError

    async def scenario(_loop: Loop, _upkeep: Upkeep) -> None:
        await anyio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as caught:
        play(ground, scenario, [Duty("compact", 1.0, step)])
    assert caught.group_contains(ZeroDivisionError)


def test_a_step_under_way_ends_when_the_data_root_is_closed(ground: Ground) -> None:
    begun, ended = threading.Event(), threading.Event()

    def step(hands: Hands) -> bool:
        engine = hands.engine
        begun.set()
        try:
            engine.execute("SELECT count(*) FROM range(1000000) a, range(1000000000) b WHERE a.range % 7 = b.range % 5")
        finally:
            ended.set()
        return True

    async def scenario(_loop: Loop, _upkeep: Upkeep) -> None:
        await seen(begun)

    metrics = play(ground, scenario, [Duty("compact", 1.0, step)])
    assert ended.is_set()
    assert count(metrics, "piper_upkeep_errors_total") == 0


def test_what_a_step_prepared_is_removed_when_the_loop_refuses_its_commit(ground: Ground) -> None:
    def step(hands: Hands) -> int:
        rewrite = Rewrite.begin(hands.writer.store, hands.con)
        rewrite.replace(hands.engine, partitions(hands.con)[0])
        return hands.commit(rewrite)

    async def scenario(loop: Loop, upkeep: Upkeep) -> None:
        loop.takes_jobs, loop.refusal = False, PiperError("piperd is stopping")
        with pytest.raises(PiperError, match="is stopping"):
            await upkeep.do(step)
        assert list(ground.layout.staging.iterdir()) == []
        assert not loop.jobs
        loop.takes_jobs, loop.refusal = True, None
        assert await upkeep.do(step) > 0
        loop.writer.publish()

    play(ground, scenario)
    check_all(ground)


def test_duties_wait_while_lines_are_waiting_and_those_that_do_not_yield_go_on(ground: Ground) -> None:
    compacted, forgot = threading.Event(), threading.Event()

    async def scenario(loop: Loop, _upkeep: Upkeep) -> None:
        await seen(forgot)
        assert not compacted.is_set()
        loop.is_behind = False
        await seen(compacted)

    duties = [
        Duty("compact", 1.0, lambda _hands: bool(compacted.set())),
        Duty("forget", 1.0, lambda _hands: bool(forgot.set()), yields=False),
    ]
    play(ground, scenario, duties, is_behind=True)


def test_duties_and_commands_work_one_at_a_time(ground: Ground) -> None:
    at_once, most = 0, 0
    lock = threading.Lock()
    turns = threading.Event()

    def step(hands: Hands) -> bool:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        hands.con.execute("SELECT sum(range) FROM range(100000)").fetchall()
        with lock:
            at_once -= 1
        turns.set()
        return False

    async def scenario(_loop: Loop, upkeep: Upkeep) -> None:
        await seen(turns)
        async with anyio.create_task_group() as commands:
            for _ in range(8):
                commands.start_soon(upkeep.do, step)

    play(ground, scenario, [Duty("compact", 0.001, step), Duty("prune", 0.001, step)])
    assert most == 1
