"""What every test in Python needs: how slow the program under test is, and an orderly end.

A program under a sanitizer is slower: every wait and bound is SLOW times as long. SIGTERM (a test that is out of time) unwinds as Ctrl-C
does, so that the `with` blocks end what they have started; end_all() ends the rest.
"""
import os
import signal
import subprocess
import sys

SLOW = float(os.environ.get("GANTRY_SLOW", "1"))

_started = []


def start(*args, **options):
    """A subprocess.Popen that end_all() knows."""
    _started.append(subprocess.Popen(*args, **options))
    return _started[-1]


def end_all():
    for process in _started:
        if process.poll() is None:
            process.terminate()
    for process in _started:
        try:
            process.wait(timeout=30 * SLOW)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    _started.clear()


def _terminated(number, _frame):
    signal.signal(number, signal.SIG_IGN)  # once is enough: a second one must not cut the end short
    sys.exit(128 + number)


signal.signal(signal.SIGTERM, _terminated)
