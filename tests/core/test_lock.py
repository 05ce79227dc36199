import multiprocessing
import os
import signal
import threading
import time

import pytest
from likeness.core.errors import LikenessError, RunLocked
from likeness.core.lock import LOCK_NAME, run_lock

NUM_RACES, NUM_RUNNERS = 50, 4


def race(folder, start, results):
    """Each round, all try at once; whoever is in must be alone in there."""
    for number in range(NUM_RACES):
        start.wait(60)
        try:
            with run_lock(folder):
                marker = os.open(folder / "marker", os.O_CREAT | os.O_EXCL)  # fails when somebody is in
                os.close(marker)
                time.sleep(0.001)
                (folder / "marker").unlink()
            results.put((number, "held"))
        except RunLocked:
            results.put((number, "locked"))
        except BaseException as error:
            results.put((number, repr(error)))


def test_fifty_races(tmp_path):
    fork = multiprocessing.get_context("fork")
    start, results = fork.Barrier(NUM_RUNNERS), fork.Queue()
    runners = [fork.Process(target=race, args=(tmp_path / "run", start, results)) for _ in range(NUM_RUNNERS)]
    for runner in runners:
        runner.start()
    seen = [results.get(timeout=60) for _ in range(NUM_RACES * NUM_RUNNERS)]
    for runner in runners:
        runner.join(60)
    assert {what for _, what in seen} <= {"held", "locked"}
    assert {number for number, what in seen if what == "held"} == set(range(NUM_RACES))
    assert list((tmp_path / "run").iterdir()) == []


def test_a_dead_holders_lock_is_reclaimed(tmp_path, caplog):
    pid = os.fork()
    if not pid:
        with run_lock(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert (tmp_path / LOCK_NAME).exists()
    with run_lock(tmp_path):
        assert str(pid) in caplog.text
        with pytest.raises(RunLocked, match=str(os.getpid())), run_lock(tmp_path):
            pass
    assert not (tmp_path / LOCK_NAME).exists()


def test_threads_of_one_process_exclude_each_other(tmp_path):
    caught = []

    def other():
        try:
            with run_lock(tmp_path):
                pass
        except RunLocked as error:
            caught.append(error)

    with run_lock(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(caught) == 1
    other()
    assert len(caught) == 1


def test_an_error_inside_releases(tmp_path):
    with pytest.raises(KeyError), run_lock(tmp_path):
        raise KeyError
    with run_lock(tmp_path):
        pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LikenessError, match="file"), run_lock(tmp_path / "file" / "run"):
        pass
