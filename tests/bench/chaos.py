#!/usr/bin/env python3
"""Faults at random, by a seed, under streams that are compared token by token (tests/common/chaos.py).

    ./run bench chaos [--seed S] [--kills N] [--streams N] [--replicas R] [--tp N] [--pp N] [--settle] [--both P]
                      [--prompt N [--answer N]] [--hang-timeout S] [--log FILE] [--random-model SHAPE]
                      [--hold POSITIONS] [--coordinator P] [--break P]

Kinds: SIGKILL to a rank of every replica at once (--both, a tenth; counted one by one), else to a random rank (67 %) or a random
mpirun (17 %), or SIGSTOP to a random rank (16 %). A fault waits until its replica serves; the others may still be
starting, unless --settle.

--coordinator P: the service has a journal, and a share P of the strikes is a SIGKILL to `gantry serve` itself; a quarter of those takes a
rank along, a sixth hits the next one too, while it takes over. It is started again within a second. Replicas that served and were
not hit must serve again as the same processes. --break P: a share P of the strikes breaks the connections of half of the clients.
Clients resume by request id and place. Prints a line per fault, then how many answers differ from the undisturbed ones (must be none), the time from the fault to the log line that names
it, and the pauses that the streams had. Exit code 1 if an answer differs or fails, a fault is not named in time, or anything is
left behind. --random-model serves random weights of a shape that tests/bench/make_model.c knows (--prompt is needed then).
"""
import argparse
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

SOURCE = pathlib.Path(os.environ["GANTRY_SOURCE_DIR"])
sys.path.insert(0, str(SOURCE / "tests" / "common"))
import chaos  # noqa: E402


def choose(rng, args):
    """[(kind, replica)] of the next strike."""
    n_replicas, both = args.replicas, args.both
    if args.coordinator or args.breaks:
        r = rng.random()
        if r < args.coordinator + args.breaks:
            return [("coordinator" if r < args.coordinator else "break", None)]
    r = rng.random()
    if rng.random() < both:
        return [("rank", i) for i in range(n_replicas)]
    kind = "mpirun" if r < 0.17 else "stop" if r < 0.33 else "rank"
    return [(kind, rng.randrange(n_replicas))]


def has_work(service, replica):
    status = service.status()
    one = status.replicas[replica]
    return one.state == "serving" and (one.running > 0 or all(r.running == 0 for r in status.replicas))


def random_model(shape):
    """A directory below GANTRY_BENCH_DIR, kept there; the demo model's tokenizer."""
    folder = pathlib.Path(os.environ.get("GANTRY_BENCH_DIR") or tempfile.mkdtemp(prefix="gantry-bench-")) / shape
    if not (folder / "model.safetensors").exists():
        folder.mkdir(parents=True, exist_ok=True)
        maker = pathlib.Path(os.environ["GANTRY"]).parent / "tests" / "bench.make_model"
        subprocess.run([maker, folder, shape], check=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SOURCE / "model" / "demo" / name, folder)
    chaos.START_S = 600
    return folder


def kv_tokens(service):
    """Positions whose K and V the replicas hold, for streams or for prompts that begin alike."""
    return sum((r.kv_blocks_used + r.kv_blocks_cached) * r.kv_block_tokens for r in service.status().replicas)


def figures(words, values, unit="ms"):
    if values:
        print(f"{words:<44} n {len(values):5}  p50 {chaos.quantile(values, 0.5):7.0f}  p99 {chaos.quantile(values, 0.99):7.0f}  "
              f"max {max(values):7.0f} {unit}")


def await_same(service, before, spared):
    """The replicas of `before` that were not hit serve again, as the same processes."""
    def is_back(i):
        now = service.status().replicas[i]
        if now.generation != before[i][0]:
            raise chaos.Failed(f"replica {i} served as generation {before[i][0]} when its coordinator died, and is {now.generation} now")
        return now.state == "serving"

    for i in spared:
        service.wait_for(lambda: is_back(i), 60, f"replica {i} to be taken over")
        now = [rank.pid for rank in service.status().replicas[i].ranks]
        if now != before[i][1]:
            raise chaos.Failed(f"replica {i} had the ranks {before[i][1]} and has {now} now")


def strike_coordinator(service, rng, moments):
    """Kills it once or twice, perhaps with a rank, and starts it again. Words for the line, and the number of faults."""
    replicas = service.status().replicas
    before = {r.replica: (r.generation, [rank.pid for rank in r.ranks]) for r in replicas if r.state == "serving"}
    victim = rng.choice(sorted(before)) if before and rng.random() < 0.25 else None
    for i in before:
        service.launcher(i)  # its command line has the shared memory that must be gone in the end
    killed_at = time.time()
    service.kill()
    if victim is not None:
        try:
            os.kill(rng.choice(before[victim][1]), signal.SIGKILL)
        except ProcessLookupError:  # it was dying of the fault before
            pass
    time.sleep(rng.uniform(0, 1))
    again = rng.random() < 1 / 6
    if again:
        service.launch()
        time.sleep(rng.uniform(0, 1))
        service.kill()
        time.sleep(rng.uniform(0, 0.3))
    service.start(("serving", "degraded"))
    moments.append((killed_at, service.started_at))
    await_same(service, before, [i for i in before if i != victim])
    words = "coordinator killed" + (f" with a rank of replica {victim}" if victim is not None else "") + (", twice" if again else "")
    return words, 1 + again + (victim is not None)


def strike_connections(crowd, rng, broken):
    answers = [a for a in crowd.answers if a is not None]
    hit = rng.sample(answers, max(1, len(answers) // 2))
    broken.append(time.time())
    for answer in hit:
        answer.cut()
    return f"connections of {len(hit)} clients broken", 1


def strike_replicas(service, strike, rng, bounds, named):
    for _, replica in strike:
        service.wait_for(lambda: has_work(service, replica), 60, f"replica {replica} to work")
    time.sleep(rng.uniform(0, 0.5))
    faults = [chaos.inject(service, kind, replica, rng) for kind, replica in strike]
    words = []
    for fault in faults:
        took = chaos.await_named(service, fault, bounds[fault.kind])
        named[fault.kind].append(took * 1000)
        words.append(f"{fault}: named after {took * 1000:.0f} ms")
    return "; ".join(words), len(faults)


def resumed_after(crowd, moments, broken):
    """Milliseconds: from a new coordinator's start to a stream's next token; from the last one before; of broken connections."""
    starts, pauses, breaks = [], [], []
    for last, first in crowd.gaps:
        hit = [(killed, started) for killed, started in moments if last < started and killed < first]
        if len(hit) > 1:
            continue  # hit again before it had said anything
        if hit:
            starts.append((first - hit[0][1]) * 1000)
            pauses.append((first - last) * 1000)
        elif any(last < at < first for at in broken):
            breaks.append((first - last) * 1000)
    return starts, pauses, breaks


def run(args):
    rng = random.Random(args.seed)
    model = SOURCE / "model" / "demo" if not args.random_model else random_model(args.random_model)
    bounds = {"rank": args.bound, "mpirun": args.bound, "stop": args.hang_timeout + args.bound}
    named = {"rank": [], "mpirun": [], "stop": []}
    if args.prompt:
        prompts = [[rng.randrange(10, 4000) for _ in range(args.prompt)] for _ in range(args.streams)]
        chaos.REQUESTS[:] = [dict(prompt_ids=chaos.gantry_pb2.TokenIds(ids=ids), temperature=0.8, seed=i, max_tokens=args.answer,
                                  ignore_eos=True, logprobs=1) for i, ids in enumerate(prompts)]
    wanted = chaos.undisturbed(model)
    options = ["--replicas", str(args.replicas), "--tp", str(args.tp), "--pp", str(args.pp), "--threads", "1", "--hang-timeout",
               str(args.hang_timeout), "--retries", "1000000", "--restarts", "1000000"]
    begun = time.monotonic()
    is_durable = args.coordinator + args.breaks > 0
    kinds = {"coordinator": 0, "break": 0, "replica": 0}
    with chaos.DurableService(model, options) if is_durable else chaos.Service(model, options) as service:
        with chaos.Crowd(service, wanted, args.streams) as crowd:
            n, most_kv, moments, broken = 0, 0, [], []
            while n < args.kills:
                strike = choose(rng, args)
                if args.settle:
                    service.wait_for(lambda: service.status().state == "serving", 90, "every replica to serve")
                service.wait_for(lambda: kv_tokens(service) >= args.hold, 600, f"{args.hold} positions of KV")
                kind = strike[0][0]
                if kind in ("coordinator", "break"):
                    service.wait_for(lambda: service.status().streams > 0, 60, "streams")
                    time.sleep(rng.uniform(0, 0.5))
                most_kv = max(most_kv, kv_tokens(service))
                if kind == "coordinator":
                    words, more = strike_coordinator(service, rng, moments)
                elif kind == "break":
                    words, more = strike_connections(crowd, rng, broken)
                else:
                    words, more = strike_replicas(service, strike, rng, bounds, named)
                n += more
                kinds[kind if kind in kinds else "replica"] += more
                print(f"{n:5} {words}; {crowd.n_answers} answers", flush=True)
                if crowd.differing or crowd.failed:
                    break
        crowd.check()
        service.wait_for(service.is_free, 10, "all KV blocks to be free")
        inside, outside = chaos.pauses(service, crowd)
        if args.log:
            pathlib.Path(args.log).write_text(service.log())
    print(f"\nseed {args.seed}, {args.replicas} replicas of tp {args.tp} x pp {args.pp}, {args.streams} streams, "
          f"{time.monotonic() - begun:.0f} s: {n} faults, {crowd.n_answers} answers, {crowd.n_tokens} tokens, 0 differ, 0 failed")
    print(f"KV of at most {most_kv} positions was held when a fault came")
    figures("rank killed -> named log line", named["rank"])
    figures("mpirun killed -> named log line", named["mpirun"])
    figures(f"rank stopped -> named (--hang-timeout {args.hang_timeout})", named["stop"])
    figures("pause of a stream, from the loss noticed", inside)
    figures("pause of a stream, at its client", outside)
    if is_durable:
        print(f"{kinds['coordinator']} with coordinators, {kinds['break']} broken connections, {kinds['replica']} of replicas; "
              f"{crowd.n_resumed} times a client resumed")
        starts, pauses, breaks = resumed_after(crowd, moments, broken)
        figures("coordinator's start -> next token of a stream", starts)
        figures("its pause, with the time until that start", pauses)
        figures("pause of a stream whose connection broke", breaks)


def main():
    parser = argparse.ArgumentParser(description="Faults at random under streams that must not notice.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--pp", type=int, default=1)
    parser.add_argument("--hang-timeout", type=int, default=2)
    parser.add_argument("--both", type=float, default=0.1, help="share of strikes that hit every replica at once")
    parser.add_argument("--settle", action="store_true", help="let every replica serve again before the next strike")
    parser.add_argument("--prompt", type=int, help="instead of the mixed requests: sampled ones with a prompt of so many tokens")
    parser.add_argument("--answer", type=int, default=400, help="with --prompt: tokens of an answer")
    parser.add_argument("--random-model", metavar="SHAPE", help="instead of the demo model")
    parser.add_argument("--hold", type=int, default=0, help="strike when the replicas hold KV of so many positions")
    parser.add_argument("--coordinator", type=float, default=0, metavar="P", help="share of strikes that kill gantry serve itself")
    parser.add_argument("--break", type=float, default=0, metavar="P", dest="breaks", help="share of strikes that break clients' connections")
    parser.add_argument("--log", help="keep the service's log there")
    parser.add_argument("--bound", type=float, default=2, help="seconds until a fault must be named")
    run(parser.parse_args())


try:
    main()
except chaos.Failed as failure:
    sys.exit(f"FAIL  {failure}")
