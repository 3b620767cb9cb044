#!/usr/bin/env python3
"""Promise P3: a rank, an mpirun or a whole replica is lost in mid-stream, and every client gets exactly the tokens and
log-probabilities that it would have had.

Eight clients ask mixed requests over and over of two replicas; faults come by a seed (GANTRY_SEED): a rank killed, a rank
stopped, mpirun killed, both replicas at once. After each, its log line must come in time and name the rank; at the end no stream
has failed or differs from an undisturbed service's, no KV block is held, no process is left. Then one replica alone, whose
streams wait for its restart.
"""
import os
import pathlib
import random
import sys

SOURCE = pathlib.Path(os.environ["GANTRY_SOURCE_DIR"])
sys.path.insert(0, str(SOURCE / "tests" / "common"))
try:
    import chaos
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

MODEL = SOURCE / "model" / "demo"
HANG_S = 2 if chaos.SLOW == 1 else 6
BOUND_S = {"rank": 1.0, "mpirun": 2.0, "stop": HANG_S + 1.5}
SLACK_S = float(os.environ.get("GANTRY_SLACK_S", "1"))  # a machine that is busy with other things
OPTIONS = ["--threads", "1", "--hang-timeout", str(HANG_S), "--retries", "100"]


def serving(service):
    return service.status().state == "serving"


def strike(service, kinds, replicas, rng):
    faults = [chaos.inject(service, kind, replica, rng) for kind, replica in zip(kinds, replicas)]
    for fault in faults:
        took = chaos.await_named(service, fault, BOUND_S[fault.kind] + SLACK_S)
        print(f"  {fault}: named after {took * 1000:.0f} ms", flush=True)
    service.wait_for(lambda: serving(service), 60, "every replica to serve again")


def run(options, rounds, wanted, rng, what):
    print(what, flush=True)
    with chaos.Service(MODEL, OPTIONS + options) as service:
        with chaos.Crowd(service, wanted, 8) as crowd:
            for kinds, replicas in rounds:
                seen = crowd.n_tokens
                service.wait_for(lambda: service.status().streams >= 6, 30, "streams to run")
                chaos.time.sleep(rng.uniform(0.2, 1.0))
                strike(service, kinds, replicas, rng)
                assert crowd.n_tokens >= seen
        crowd.check()
        service.wait_for(service.is_free, 10, "all KV blocks to be free")
        inside, outside = chaos.pauses(service, crowd)
        if not inside:
            raise chaos.Failed("no stream was moved: the faults came too late or too early")
        print(f"  {crowd.n_answers} answers, {crowd.n_tokens} tokens, all equal; {len(inside)} pauses: coordinator p50 "
              f"{chaos.quantile(inside, 0.5):.0f} ms, p99 {chaos.quantile(inside, 0.99):.0f} ms; client p50 "
              f"{chaos.quantile(outside, 0.5):.0f} ms, p99 {chaos.quantile(outside, 0.99):.0f} ms", flush=True)


def main():
    rng = random.Random(int(os.environ.get("GANTRY_SEED", "1")))
    wanted = chaos.undisturbed(MODEL)
    two = [(["rank"], [rng.randrange(2)]), (["mpirun"], [rng.randrange(2)]), (["stop"], [rng.randrange(2)]),
           (["rank", "rank"], [0, 1])]
    rng.shuffle(two)
    run(["--replicas", "2", "--tp", "2", "--pp", "1"], two, wanted, rng, "two replicas of tp 2 x pp 1")
    run(["--replicas", "2", "--tp", "1", "--pp", "2"], [(["rank"], [rng.randrange(2)]), (["stop"], [rng.randrange(2)])], wanted, rng,
        "two replicas of tp 1 x pp 2")
    run(["--tp", "2", "--pp", "1"], [(["rank"], [0])], wanted, rng, "one replica: its streams wait for the restart")


try:
    main()
except chaos.Failed as failure:
    sys.exit(f"FAIL  {failure}")
