"""How waiting threads are told to give way, and when they are told nothing."""

import os
import threading
import time
import zlib
from pathlib import Path

import psutil
import pytest

from modeling_gpt2scratch.common import threads
from modeling_gpt2scratch.common.threads import CHOICES, let_waiting_threads_rest, load_of_others


@pytest.fixture
def chosen(monkeypatch):
    """What is chosen on a machine of so many cores, of which others want some."""

    def choose(load: float, cores: int, **environment: str) -> dict[str, str]:
        for name in CHOICES:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(threads, "load_of_others", lambda: load)
        monkeypatch.setattr(threads, "n_cores", lambda: cores)
        monkeypatch.setattr(os, "environ", dict(os.environ))
        let_waiting_threads_rest()
        return {name: os.environ[name] for name in CHOICES if name in os.environ}

    return choose


def test_waiting_threads_spin_for_a_moment_and_on_a_busy_machine_not_at_all(chosen):
    moment = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}
    assert chosen(0, 2) == chosen(3, 8) == moment
    assert chosen(1, 2) == chosen(4, 8) == chosen(9, 8) == {"OMP_WAIT_POLICY": "passive"}


@pytest.mark.parametrize("name", CHOICES)
def test_whoever_has_chosen_is_left_alone(chosen, name):
    assert chosen(9, 2, **{name: "5"}) == {name: "5"}


@pytest.fixture
def load(monkeypatch):
    """The load of others that this content of /proc/loadavg means."""

    def look(content: str | None, *, own: int = 1, **environment: str) -> float:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

        def read_text(path, **options) -> str:
            if content is None:
                raise FileNotFoundError(path)
            return content

        monkeypatch.setattr(Path, "read_text", read_text)
        monkeypatch.setattr(threads, "_threads_of_this_process", lambda: own)
        load_of_others.cache_clear()
        try:
            return load_of_others()
        finally:
            monkeypatch.undo()
            load_of_others.cache_clear()

    return look


def test_the_load_is_of_this_moment_and_leaves_out_the_processes_of_this_launch(load):
    assert load("9.00 9.00 9.00 4/150 77\n") == 3.0
    assert load("0.00 0.00 0.00 1/150 77\n") == 0.0
    assert load("0.00 0.00 0.00 5/150 77\n", LOCAL_WORLD_SIZE="4") == 1.0
    assert load("0.00 0.00 0.00 2/150 77\n", LOCAL_WORLD_SIZE="4") == 0.0
    assert load("0.00 0.00 0.00 2/150 77\n", LOCAL_WORLD_SIZE="") == 1.0


def test_threads_of_its_own_are_no_load_of_others(load):
    # numpy's spin for a tenth of a second once it is loaded
    assert load("0.00 0.00 0.00 4/150 77\n", own=3) == 1.0
    assert load("0.00 0.00 0.00 5/150 77\n", own=2, LOCAL_WORLD_SIZE="2") == 1.0


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux: it lists threads")
def test_threads_that_want_a_core_are_counted():
    data, n_threads, stop = bytes(2**24), 3, threading.Event()

    def work():
        while not stop.is_set():
            zlib.crc32(data)  # without the interpreter's lock

    workers = [threading.Thread(target=work) for _ in range(n_threads)]
    for worker in workers:
        worker.start()
    try:
        counts = [threads._threads_of_this_process() for _ in range(200)]
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    assert max(counts) >= n_threads + 1


@pytest.mark.parametrize(("percent", "n_busy"), [(0.0, 0), (2.0, 0), (37.5, 3), (100.0, 8)])
def test_where_threads_are_not_counted_busy_cores_are(load, monkeypatch, percent, n_busy):
    monkeypatch.setattr(psutil, "cpu_count", lambda: 8)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: percent)
    monkeypatch.setattr(time, "process_time", lambda: 0.0)
    assert load(None) == n_busy


def test_its_own_work_leaves_no_other_core_busy(load, monkeypatch):
    seconds = iter((1.0, 1.07))
    monkeypatch.setattr(time, "process_time", lambda: next(seconds))
    monkeypatch.setattr(psutil, "cpu_count", lambda: 8)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 25.0)  # two, four are ours
    assert load(None, LOCAL_WORLD_SIZE="4") == 0
