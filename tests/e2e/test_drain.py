#!/usr/bin/env python3
"""`gantry drain`: replicas are emptied, kept down, started again, one and all, under eight clients who must not notice.

No stream fails or differs from an undisturbed service's; nobody counts as lost; what makes no sense is refused with a sentence.
"""
import os
import pathlib
import subprocess
import sys

SOURCE = pathlib.Path(os.environ["GANTRY_SOURCE_DIR"])
sys.path.insert(0, str(SOURCE / "tests" / "common"))
try:
    import chaos
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

MODEL = SOURCE / "model" / "demo"
OPTIONS = ["--threads", "1", "--retries", "0"]  # a drain is no fault: a move that counts would fail its stream


def drain(service, *words, code=0):
    command = [chaos.GANTRY, "drain", "--run-dir", str(service.run_dir), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120 * chaos.SLOW)
    if done.returncode != code:
        raise chaos.Failed(f"{' '.join(words)}: exit code {done.returncode}, {code} expected\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def expect(said, words):
    if words not in said:
        raise chaos.Failed(f'"{words}" is not in: {said}')


def states(service):
    return [(r.state, r.generation) for r in service.status().replicas]


def two(wanted):
    with chaos.Service(MODEL, OPTIONS + ["--replicas", "2"]) as service:
        expect(drain(service, "5", code=3), "there is no replica 5")
        expect(drain(service, code=2), "name replicas by their numbers, or give --all")
        with chaos.Crowd(service, wanted, 8) as crowd:
            service.wait_for(lambda: service.status().streams >= 6, 30, "streams to run")
            expect(drain(service, "1", "--grace", "0"), "replica 1.1: drained, 0 streams there")
            assert states(service) == [("serving", 1), ("drained", 1)], states(service)
            assert service.status().state == "degraded"
            expect(drain(service, "0", code=6), "is the only one that serves")
            seen = crowd.n_answers
            service.wait_for(lambda: crowd.n_answers >= seen + 4, 60, "answers of the one that is left")
            drain(service, "1", "--restart")
            assert states(service) == [("serving", 1), ("serving", 2)], states(service)
            service.wait_for(lambda: service.status().streams >= 6, 30, "streams to run")
            expect(drain(service, "--all", "--restart", "--grace", "1"), "2 replicas started again")
            assert states(service) == [("serving", 2), ("serving", 3)], states(service)
        crowd.check()
        assert all(r.losses == 0 for r in service.status().replicas)
        service.wait_for(service.is_free, 10, "all KV blocks to be free")
        inside, _ = chaos.pauses(service, crowd)
        if not inside:
            raise chaos.Failed("no stream was moved: the drains came too late or too early")
        print(f"  {crowd.n_answers} answers, {crowd.n_tokens} tokens, all equal; {len(inside)} streams were moved", flush=True)


def one(wanted):
    with chaos.Service(MODEL, OPTIONS + ["--tp", "2"]) as service:
        with chaos.Crowd(service, wanted, 4) as crowd:
            service.wait_for(lambda: service.status().streams >= 3, 30, "streams to run")
            drain(service, "0", "--restart", "--grace", "0")
            assert states(service) == [("serving", 2)], states(service)
        crowd.check()
        print(f"  {crowd.n_answers} answers, all equal", flush=True)


try:
    answers = chaos.undisturbed(MODEL)
    print("two replicas: one down, up again, then a rolling restart", flush=True)
    two(answers)
    print("one replica: its streams wait for its restart", flush=True)
    one(answers)
except chaos.Failed as failure:
    sys.exit(f"FAIL  {failure}")
