#!/usr/bin/env python3
"""The n-th allocation, the n-th system call of the coordinator or of the leader fails: at their start, and while they serve.

  faults.py [--points N] [--steady N] [--seed S] [--roles serve,leader]

At the start: a clean start tells how many calls of each kind there are; of those, N points (0: all) fail in turn. The service then
starts all the same and answers as ever, or ends with a code that means something (not a signal, not 70) and a sentence.
While it serves: four clients ask on; faults come one by one. Only a failed allocation may cost a stream, and then it is told so
(RESOURCE_EXHAUSTED); everything else is invisible: equal answers, no loss of the coordinator, all blocks and descriptors back.
"""
import argparse
import mmap
import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import threading
import time

SOURCE = pathlib.Path(os.environ["GANTRY_SOURCE_DIR"])
sys.path.insert(0, str(SOURCE / "tests" / "common"))
try:
    import chaos
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

MODEL = SOURCE / "model" / "demo"
KINDS = ["alloc", "eintr", "short", "no space", "no files", "io error", "refused"]
BOARD = struct.Struct("<7QqQQ")
REQUEST = dict(prompt="The whale", temperature=0.9, seed=1, max_tokens=40, ignore_eos=True, logprobs=2)
GOOD_CODES = {2, 3, 4, 5, 6, 7, 8}


class Board:
    """The page that tests/fault/preload.c reads."""

    def __init__(self, folder):
        self.path = pathlib.Path(folder) / "board"
        self.path.write_bytes(bytes(4096))
        with open(self.path, "r+b") as file:
            self.map = mmap.mmap(file.fileno(), 4096)

    def clear(self):
        self.map[:BOARD.size] = bytes(BOARD.size)

    def calls(self):
        return BOARD.unpack(self.map[:BOARD.size])[:7]

    def hits(self):
        return BOARD.unpack(self.map[:BOARD.size])[9]

    def arm(self, kind, n):
        calls = self.calls()
        self.map[56:72] = struct.pack("<qQ", 0, kind)
        self.map[56:64] = struct.pack("<q", n)
        return calls


def environment(board, role):
    """What a service of this test is started with."""
    os.environ.update(LD_PRELOAD=os.environ["GANTRY_FAULT_LIBRARY"], GANTRY_FAULT_FILE=str(board.path), GANTRY_FAULT_ROLE=role)


def calm():
    for name in ("LD_PRELOAD", "GANTRY_FAULT_FILE", "GANTRY_FAULT_ROLE"):
        os.environ.pop(name, None)


def answer(service, request_id):
    stub = chaos.gantry_pb2_grpc.GenerationStub(service.channel)
    return chaos.ask(stub, REQUEST, request_id)


def answer_or_refusal(service):
    """None: the fault came as late as this request, and it was told so."""
    try:
        return answer(service, "")
    except chaos.grpc.RpcError as error:
        if error.code() != chaos.grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise chaos.Failed(f"{error.code()}: {error.details()}") from error
        return None


# ---- at the start ----

class Ended(Exception):
    pass


class Start(chaos.Service):
    """A service whose start may end with a word."""

    def __enter__(self):
        try:
            return super().__enter__()
        except chaos.Failed as failure:
            if self.process.poll() is None:
                raise
            raise Ended(self.process.returncode) from failure

    def __exit__(self, *failure):
        if failure[0] is not None and self.ends():
            self.said = self.log()
            self.dir.cleanup()
            return
        super().__exit__(*failure)

    def ends(self):
        """Of itself, that is; what it still has to do takes a moment."""
        try:
            self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            return False
        return True


def start(board, role, options, wanted):
    """'serves' or 'ends', or Failed."""
    service = Start(MODEL, options)
    environment(board, role)
    try:
        with service:
            calm()
            got = answer_or_refusal(service) or answer(service, "after-start")
            if got != wanted:
                raise chaos.Failed("another answer after a fault at the start")
        return "serves"
    except Ended as ended:
        code = ended.args[0]
        if code not in GOOD_CODES or "gantry serve: " not in service.said:
            raise chaos.Failed(f"the service ended with {code}:\n{service.said[-3000:]}") from None
        service.why = [line for line in service.said.splitlines() if line.startswith("gantry serve: ")][-1]
        if os.environ.get("GANTRY_VERBOSE"):
            print(f"    code {code}: {service.why}", flush=True)
        return "ends"
    finally:
        calm()


def starts(board, role, options, wanted, n_points, rng):
    board.clear()
    start(board, role, options, wanted)
    calls = board.calls()
    if calls[0] == 0:
        raise chaos.Failed(f"{role}: no call was counted: is {os.environ['GANTRY_FAULT_LIBRARY']} loaded?")
    for kind, name in enumerate(KINDS):
        points = list(range(1, calls[kind] + 1))
        if n_points and len(points) > n_points:
            points = sorted(rng.sample(points, n_points))
        results = {"serves": 0, "ends": 0}
        for n in points:
            board.clear()
            board.arm(kind, n)
            try:
                results[start(board, role, options, wanted)] += 1
            except chaos.Failed as failure:
                raise chaos.Failed(f"{role}, start, {name} number {n}: {failure}") from failure
        print(f"  {role}, start, {name}: {calls[kind]} calls, {len(points)} failed in turn: {results['serves']} times it served all the "
              f"same, {results['ends']} times it ended with a word", flush=True)


# ---- while it serves ----

class Askers:
    """Four clients; what an allocation may cost is counted, everything else is a failure."""

    def __init__(self, service, wanted):
        self.service, self.wanted, self.over = service, wanted, threading.Event()
        self.n, self.refused, self.wrong = 0, 0, []
        self.may_refuse = False
        self.threads = [threading.Thread(target=self.run, args=(i,), daemon=True) for i in range(4)]
        for thread in self.threads:
            thread.start()

    def run(self, i):
        grpc = chaos.grpc
        stub = chaos.gantry_pb2_grpc.GenerationStub(grpc.insecure_channel(self.service.target, [("grpc.use_local_subchannel_pool", 1)]))
        while not self.over.is_set():
            try:
                got = chaos.ask(stub, REQUEST, "")
            except grpc.RpcError as error:
                if self.may_refuse and error.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE):
                    self.refused += 1
                elif "no replica serves now" in (error.details() or ""):
                    time.sleep(0.05)  # never accepted
                else:
                    self.wrong.append(f"{error.code()}: {error.details()}")
                continue
            except chaos.Failed as error:
                self.wrong.append(str(error))
                continue
            self.n += 1
            if got != self.wanted:
                self.wrong.append("another answer")

    def end(self):
        self.over.set()
        for thread in self.threads:
            thread.join(timeout=120)
            if thread.is_alive():
                raise chaos.Failed("a stream does not end")


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def pid_of(service, role):
    return service.process.pid if role == "serve" else service.status().replicas[0].ranks[0].pid


def settled(service):
    return service.status().state == "serving" and service.is_free()


def steady(board, role, options, wanted, n_faults, rng):
    environment(board, role)
    board.clear()
    with chaos.Service(MODEL, options) as service:
        calm()
        answer(service, "warm-up")
        before, pid = descriptors(pid_of(service, role)), pid_of(service, role)
        askers = Askers(service, wanted)
        hits = [0] * len(KINDS)
        for _ in range(n_faults):
            kind = rng.choice(list(range(len(KINDS))) + [0] * 6)  # a serving process mostly allocates
            askers.may_refuse = kind == 0
            seen, n = board.hits(), askers.n
            board.arm(kind, rng.randrange(1, 40))
            end = time.monotonic() + 0.7
            while board.hits() == seen and time.monotonic() < end:
                time.sleep(0.01)
            board.arm(kind, 0)
            hits[kind] += board.hits() - seen
            service.wait_for(lambda: askers.n >= n + 4, 60, f"answers after {KINDS[kind]}")
            if kind == 0:
                service.wait_for(lambda: service.status().state == "serving", 60, "the service to be whole again")
        askers.may_refuse = False
        askers.end()
        if askers.wrong:
            raise chaos.Failed(f"{role}, serving: " + "; ".join(askers.wrong[:5]))
        service.wait_for(lambda: settled(service), 30, "all KV blocks to be free")
        if pid_of(service, role) == pid:  # a leader may have been started again
            service.wait_for(lambda: descriptors(pid) <= before + 4, 20, f"descriptors: {before} before")
        print(f"  {role}, serving: {sum(hits)} faults (" + ", ".join(f"{n} {k}" for k, n in zip(KINDS, hits)) +
              f"), {askers.n} equal answers, {askers.refused} refused", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, default=1)
    parser.add_argument("--steady", type=int, default=8)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("GANTRY_SEED", "1")))
    parser.add_argument("--roles", default="serve,leader")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    options = ["--threads", "1", "--retries", "100", "--restarts", "100"]
    with chaos.Service(MODEL, options) as service:
        wanted = answer(service, "wanted")
    with tempfile.TemporaryDirectory(prefix="gantry-fault-") as folder:
        board = Board(folder)
        for role in args.roles.split(","):
            starts(board, role, options, wanted, args.points, rng)
            steady(board, role, options + ["--replicas", "2"], wanted, args.steady, rng)


try:
    main()
except chaos.Failed as failure:
    sys.exit(f"FAIL  {failure}")
