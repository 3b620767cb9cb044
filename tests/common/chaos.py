"""Streams that must not notice: what tests/e2e/test_failover.py, test_resume.py and tests/bench/chaos.py share.

A Service is a `gantry serve`, its status, and its log as (time, text). A Crowd is a set of clients that ask the same mixed
requests (greedy, sampled, filtered, with stop strings, penalties, log-probabilities, several choices) over and over and compare
every answer, token by token and log-probability by log-probability (as floats: equal bits), with the answer of an undisturbed service. Faults
are signals to processes of the service, chosen by a seed.

A DurableService has a journal: its coordinator may be killed and started again. An Answer is a client's, who goes on with it by request
id and place, in each of its choices, until it is whole, at whatever coordinator there is.
"""
import calendar
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.environ["GANTRY_PY"])
import grpc  # noqa: E402
import gantry_pb2  # noqa: E402
import gantry_pb2_grpc  # noqa: E402
from runner import SLOW  # noqa: E402

GANTRY = os.environ["GANTRY"]
START_S = 90

# Prompts, sampling, ends: every way in which a stream can depend on what was before it.
REQUESTS = [
    dict(prompt="Once upon a time", temperature=0, max_tokens=700, ignore_eos=True, logprobs=3),
    dict(prompt="The whale", temperature=0.9, seed=1, max_tokens=600, ignore_eos=True, logprobs=3),
    dict(prompt="It was a dark night and", temperature=1.1, top_k=40, top_p=0.9, min_p=0.02, seed=2, max_tokens=500, ignore_eos=True,
         logprobs=1, repetition_penalty=1.2),
    dict(prompt="", temperature=0.8, seed=3, max_tokens=400, logprobs=0),
    dict(prompt="He said that", temperature=1, seed=4, max_tokens=600, stop=["ing the", " and the "], logprobs=2),
    dict(prompt="She went to the", temperature=0, max_tokens=300, ignore_eos=True, stop=["\n\n\n\n"], logprobs=2,
         presence_penalty=0.5, frequency_penalty=0.2),
    dict(prompt="The sea " * 40, temperature=0.7, seed=5, max_tokens=500, ignore_eos=True, logprobs=3,
         repetition_penalty=1.1, frequency_penalty=0.1, logit_bias=[dict(id=20, bias=1.5), dict(id=9, bias=-100)]),
    dict(prompt="Chapter 1", temperature=1.3, top_k=200, seed=6, max_tokens=650, ignore_eos=True, logprobs=20),
    dict(prompt="The old man", n=2, temperature=1, seed=7, max_tokens=350, ignore_eos=True, logprobs=2, presence_penalty=0.4),
    dict(prompt="", n=3, temperature=0.9, top_p=0.95, seed=8, max_tokens=250, logprobs=1, stop=[" the "], repetition_penalty=1.05),
]
if SLOW > 1:  # shorter ones still last until the fault comes
    REQUESTS = [dict(r, max_tokens=r["max_tokens"] // 3) for r in REQUESTS]


class Failed(Exception):
    pass


def log_time(line):
    """The time of a log line, or None."""
    found = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.(\d{3})Z ", line)
    return calendar.timegm(time.strptime(found[1], "%Y-%m-%dT%H:%M:%S")) + int(found[2]) / 1000 if found else None


class Service:
    """A `gantry serve` that lives as long as the `with` block and must end with 0."""

    def __init__(self, model, options):
        self.dir = tempfile.TemporaryDirectory(prefix="gantry-chaos-")
        self.run_dir = pathlib.Path(self.dir.name) / "run"
        self.log_path = pathlib.Path(self.dir.name) / "log"
        self.command = [GANTRY, "serve", str(model), "--listen", "127.0.0.1:0", "--run-dir", str(self.run_dir), "--log-level",
                        "info", *options]

    def launch(self):
        environment = dict(os.environ, XDG_CACHE_HOME=self.dir.name, TMPDIR=self.dir.name, GANTRY_CHAOS=self.dir.name)
        environment.pop("OMPI_MCA_btl_vader_backing_directory", None)
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)

    def __enter__(self):
        self.commands = ""  # of every mpirun that was seen
        self.launch()
        try:
            self.wait_for(lambda: (self.run_dir / "endpoint.json").exists(), START_S, "an endpoint")
            self.target = f"127.0.0.1:{json.loads((self.run_dir / 'endpoint.json').read_text())['port']}"
            self.channel = grpc.insecure_channel(self.target, [("grpc.max_reconnect_backoff_ms", 500)])
            self.cluster = gantry_pb2_grpc.ClusterStub(self.channel)
            if "--external-only" not in self.command:
                self.wait_for(lambda: self.status().state == "serving", START_S, "all replicas to serve")
        except BaseException:
            self.__exit__(Failed, None, None)
            raise
        return self

    def __exit__(self, *failure):
        self.process.terminate()
        try:
            self.process.wait(timeout=60 * SLOW)
        except subprocess.TimeoutExpired:
            self.process.kill()
        if failure[0] is not None:
            print(self.log()[-6000:], file=sys.stderr)
        elif self.process.returncode != 0:
            raise Failed(f"serve ended with {self.process.returncode}:\n{self.log()[-4000:]}")
        marker = self.dir.name
        self.dir.cleanup()
        if failure[0] is None:
            self.check_shm()
            left = subprocess.run(["bash", str(pathlib.Path(__file__).with_name("no_leftovers.sh")), f"GANTRY_CHAOS={marker}"])
            if left.returncode != 0:
                raise Failed("processes are left behind")

    def check_shm(self):
        made = set(re.findall(r"/dev/shm/gantry-\w{6}", self.commands))
        left = [folder for folder in made if pathlib.Path(folder).exists()]
        if left:
            raise Failed(f"shared memory is left behind: {left}")

    def log(self):
        return self.log_path.read_text(errors="replace")

    def status(self):
        try:
            return self.cluster.GetStatus(gantry_pb2.GetStatusRequest(), timeout=10 * SLOW, wait_for_ready=True)
        except grpc.RpcError as error:
            raise Failed(f"no status: {error.details()}") from error

    def wait_for(self, what, seconds, words):
        end = time.monotonic() + seconds * SLOW
        while not what():
            if self.process.poll() is not None:
                raise Failed(f"serve has ended with {self.process.returncode} while waiting for {words}")
            if time.monotonic() > end:
                raise Failed(f"waited {seconds} s in vain for {words}")
            time.sleep(0.02)

    def launcher(self, replica):
        """The pid of the newest mpirun of a replica."""
        name = f"replica {replica}: " if len(self.status().replicas) > 1 else ""
        pid = int(re.findall(rf"^{name}starting \d+ ranks? with mpirun \(pid (\d+)\)", self.log(), re.M)[-1])
        try:
            self.commands += pathlib.Path(f"/proc/{pid}/cmdline").read_text()
        except FileNotFoundError:  # it was hit just before
            pass
        return pid

    def is_free(self):
        status = self.status()
        return status.streams == 0 and all(r.kv_blocks_used == 0 and r.running == 0 for r in status.replicas)


class DurableService(Service):
    """With a journal; its coordinator can be killed and started again."""

    def __init__(self, model, options):
        super().__init__(model, options)
        self.journal = pathlib.Path(self.dir.name) / "journal"
        self.command += ["--journal", str(self.journal)]
        self.started_at = 0

    def pids(self):
        return [[k.pid for k in r.ranks] for r in self.status().replicas]

    def state(self):
        try:
            return self.status().state
        except Failed:  # the connection is the old coordinator's
            return "none"

    def kill(self):
        self.process.kill()
        self.process.wait()

    def start(self, states=("serving",)):
        self.started_at = time.time()
        self.launch()
        self.wait_for(lambda: self.state() in states, START_S, "the service to serve again")


class Answer:
    """What a client has of its n choices, over as many connections as it takes."""

    def __init__(self, service, request, request_id, patience_s=120, arrivals=None):
        self.service, self.request, self.request_id, self.patience_s = service, request, request_id, patience_s
        self.n = request.get("n", 1)
        self.tokens, self.text, self.ends = [[] for _ in range(self.n)], [b""] * self.n, [None] * self.n
        self.call, self.channel, self.is_told, self.n_resumed, self.is_sent = None, None, threading.Event(), 0, False
        self.arrivals, self.last_at = arrivals, 0
        self.gaps = []  # (last token of a connection, first token of the next): when they came

    def is_whole(self):
        return all(end is not None for end in self.ends)

    def take(self, chunk):
        k = chunk.choice
        where = f"{self.request_id}, choice {k}"
        if chunk.token_offset != len(self.tokens[k]):
            raise Failed(f"{where}: token {chunk.token_offset} came for {len(self.tokens[k])}")
        if chunk.text_offset != len(self.text[k]):
            raise Failed(f"{where}: byte {chunk.text_offset} came for {len(self.text[k])}")
        self.text[k] += chunk.text.encode()
        now = time.time()
        for t in chunk.tokens:
            if self.arrivals is not None and self.n == 1:
                self.arrivals[len(self.tokens[k])] = now
            self.tokens[k].append((t.id, t.logprob if t.HasField("logprob") else None,
                                   tuple((top.id, top.logprob, top.piece) for top in t.top)))
        if chunk.tokens and self.is_first and self.last_at:
            self.gaps.append((self.last_at, now))
        if chunk.tokens:
            self.is_first, self.last_at = False, now
        if chunk.HasField("finished"):
            if self.ends[k] is not None and self.ends[k] != (chunk.finished.reason, chunk.finished.stop):
                raise Failed(f"{where}: it ends again, otherwise")
            self.ends[k] = chunk.finished.reason, chunk.finished.stop

    def ask(self):
        if not self.is_told.is_set():
            return gantry_pb2.GenerateRequest(request_id=self.request_id, **self.request)
        if self.n == 1:
            return gantry_pb2.GenerateRequest(request_id=self.request_id, resume=True, resume_from=len(self.tokens[0]))
        return gantry_pb2.GenerateRequest(request_id=self.request_id, resume=True, resume_from_choices=[len(t) for t in self.tokens])

    def once(self):
        """One connection's worth of it."""
        self.is_first = True
        self.channel = grpc.insecure_channel(self.service.target, [("grpc.use_local_subchannel_pool", 1)])
        try:
            self.call = gantry_pb2_grpc.GenerationStub(self.channel).GenerateStream(self.ask(), timeout=self.patience_s)
            for chunk in self.call:
                if chunk.HasField("started"):
                    if chunk.started.resume_window_s == 0 or chunk.started.n != self.n:
                        raise Failed(f"{self.request_id}: started says {chunk.started}")
                    self.n_resumed += self.is_told.is_set()
                    self.is_told.set()
                self.take(chunk)
        finally:
            self.channel.close()

    def run(self):
        """Until it is whole; Failed."""
        until = time.monotonic() + self.patience_s
        while not self.is_whole():
            try:
                self.once()
                if not self.is_whole():
                    raise Failed(f"{self.request_id}: the call ended well and the answer is not whole")
            except grpc.RpcError as error:
                code = error.code()
                if code == grpc.StatusCode.ALREADY_EXISTS and self.is_sent:
                    self.is_told.set()  # it was accepted, and the word of that was lost
                elif code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED) or time.monotonic() > until:
                    raise Failed(f"{self.request_id}: {code.name}: {error.details()}") from error
                time.sleep(0.1)
            except ValueError:  # its channel was closed under it, before the call
                time.sleep(0.1)
            self.is_sent = True

    def cut(self):
        """Its connection breaks, if it has one."""
        if self.channel is not None and not self.is_whole():
            self.channel.close()

    def answers(self):
        return [[self.text[k].decode(), self.tokens[k], *self.ends[k]] for k in range(self.n)]


def ask(stub, request, request_id, arrivals=None):
    """[text, [(id, logprob, top...)], reason, stop] of every choice. arrivals: index of a token -> when it came (n = 1)."""
    n = request.get("n", 1)
    answers = [["", [], None, None] for _ in range(n)]
    for chunk in stub.GenerateStream(gantry_pb2.GenerateRequest(request_id=request_id, **request), timeout=300 * SLOW):
        answer = answers[chunk.choice]
        answer[0] += chunk.text
        for token in chunk.tokens:
            if arrivals is not None and n == 1:
                arrivals[len(answer[1])] = time.time()
            answer[1].append((token.id, token.logprob if token.HasField("logprob") else None,
                              tuple((top.id, top.logprob, top.piece) for top in token.top)))
        if chunk.HasField("finished"):
            answer[2:] = chunk.finished.reason, chunk.finished.stop
    if any(answer[2] is None for answer in answers):
        raise Failed(f"{request_id}: a stream ended without an end")
    return answers


def undisturbed(model):
    """The answers of one rank and one thread, one request at a time."""
    with Service(model, ["--tp", "1", "--pp", "1", "--threads", "1"]) as service:
        stub = gantry_pb2_grpc.GenerationStub(service.channel)
        return [ask(stub, request, f"reference-{i}") for i, request in enumerate(REQUESTS)]


class Crowd:
    """n clients that ask until told to end. Used as a `with` block; afterwards `differing` must be empty. Of a DurableService they go on
    with their answers after whatever has broken."""

    def __init__(self, service, wanted, n):
        self.service, self.wanted = service, wanted
        self.resumes = isinstance(service, DurableService)
        self.answers = [None] * n  # that are being read
        self.gaps, self.n_resumed = [], 0
        self.n_answers, self.n_tokens, self.differing, self.failed = 0, 0, [], []
        self.arrivals = {}  # request id -> {token index: time}
        self.lock, self.is_over = threading.Lock(), threading.Event()
        self.threads = [threading.Thread(target=self.client, args=(i,), daemon=True) for i in range(n)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *failure):
        self.is_over.set()
        for thread in self.threads:
            thread.join(timeout=300 * SLOW)
            if thread.is_alive() and failure[0] is None:
                raise Failed("a stream does not end")

    def client(self, i):
        # A channel each, as clients on different machines would have.
        stub = gantry_pb2_grpc.GenerationStub(grpc.insecure_channel(self.service.target, [("grpc.use_local_subchannel_pool", 1)]))
        turn = 0
        while not self.is_over.is_set():
            which = (i + turn) % len(REQUESTS)
            request_id, arrivals = f"c{i}-{turn}-r{which}", {}
            with self.lock:
                self.arrivals[request_id] = arrivals
            turn += 1
            try:
                got = self.go_on(i, which, request_id, arrivals) if self.resumes else ask(stub, REQUESTS[which], request_id, arrivals)
            except grpc.RpcError as error:
                # A request that comes while nothing serves is refused, and was never accepted.
                if "no replica serves now" in (error.details() or ""):
                    time.sleep(0.1)
                    continue
                with self.lock:
                    self.failed.append(f"{request_id}: {error.code()}: {error.details()}")
                continue
            except Failed as error:
                with self.lock:
                    self.failed.append(str(error))
                continue
            with self.lock:
                self.n_answers += 1
                self.n_tokens += sum(len(answer[1]) for answer in got)
                for choice, (have, want) in enumerate(zip(got, self.wanted[which])):
                    if have != want:
                        at = next((k for k, (a, b) in enumerate(zip(have[1], want[1])) if a != b), "the end")
                        self.differing.append(f"{request_id}: choice {choice} differs at token {at}: {have[1][-1:]}")

    def go_on(self, i, which, request_id, arrivals):
        answer = self.answers[i] = Answer(self.service, REQUESTS[which], request_id, 300 * SLOW, arrivals)
        answer.run()
        with self.lock:
            self.gaps += answer.gaps
            self.n_resumed += answer.n_resumed
        return answer.answers()

    def check(self):
        if self.differing or self.failed:
            raise Failed("\n".join(["streams differ or failed:"] + self.differing + self.failed))


class Fault:
    """One fault: who was hit, when, and what the log must say of it."""

    def __init__(self, kind, replica, generation, rank, when):
        self.kind, self.replica, self.generation, self.rank, self.when = kind, replica, generation, rank, when

    def __str__(self):
        return f"{self.kind} on replica {self.replica}.{self.generation}" + (f" rank {self.rank}" if self.rank is not None else "")

    def find(self, log):
        """(seconds from the fault to the named line, the line) or None."""
        for line in log.splitlines():
            if f"replica {self.replica}.{self.generation} is lost: " in line:
                return log_time(line) - self.when, line.split("is lost: ", 1)[1]
        return None

    def is_named(self, words):
        return self.kind == "mpirun" or words.startswith(f"rank {self.rank} (host ")


def inject(service, kind, replica, rng):
    """kind: rank, mpirun, stop. The replica must be serving."""
    status = service.status().replicas[replica]
    rank = None if kind == "mpirun" else rng.randrange(len(status.ranks))
    pid = service.launcher(replica) if kind == "mpirun" else status.ranks[rank].pid
    fault = Fault(kind, replica, status.generation, rank, time.time())
    os.kill(pid, signal.SIGSTOP if kind == "stop" else signal.SIGKILL)
    return fault


def await_named(service, fault, seconds):
    """The time it took, or Failed."""
    service.wait_for(lambda: fault.find(service.log()) is not None, seconds + 10, f"{fault} to be noticed")
    took, words = fault.find(service.log())
    if not fault.is_named(words):
        raise Failed(f"{fault}: not named by \"{words}\"")
    if took > seconds * SLOW:
        raise Failed(f"{fault}: named after {took:.3f} s, the bound is {seconds * SLOW} s")
    return took


def pauses(service, crowd):
    """Milliseconds of every pause: (as the coordinator counts, as the client saw)."""
    inside, outside = [], []
    found = r"stream \S+ (\S+) goes on at token (\d+) on replica \d+ after a pause of ([\d.]+) ms"
    for request_id, index, ms in re.findall(found, service.log()):
        inside.append(float(ms))
        arrivals = crowd.arrivals.get(request_id, {})
        now, before = arrivals.get(int(index)), arrivals.get(int(index) - 1)
        if now is not None and before is not None:
            outside.append((now - before) * 1000)
    return inside, outside


def quantile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(q * len(values)))] if values else float("nan")
