"""Faults while a service of two replicas serves, with a journal: rounds of requests of every kind, and in each round one call fails.

A round: a stream that is cut and resumed, one with several choices, penalties and stop strings, a unary one, one that its client
leaves, one that is wrong, and the questions about the service. What only happens around a loss is brought about by killing a rank; what
only a drain does, by a drain. After the round everything has its undisturbed answer, but that a failed call which is no
interruption may refuse one request, with RESOURCE_EXHAUSTED. The coordinator stays; it holds the blocks and descriptors that it held before.
"""
import concurrent.futures
import os
import signal
import subprocess
import time

import chaos
import start

grpc, pb, rpc = chaos.grpc, chaos.gantry_pb2, chaos.gantry_pb2_grpc
CODE = grpc.StatusCode
REQUESTS = [
    dict(prompt="The whale", temperature=0.9, seed=1, max_tokens=40, ignore_eos=True, logprobs=3),
    dict(prompt="The old man", n=2, temperature=1, seed=7, max_tokens=24, ignore_eos=True, logprobs=2, presence_penalty=0.4,
         frequency_penalty=0.1, repetition_penalty=1.1, logit_bias=[dict(id=20, bias=1.5)], stop=["\n\n\n\n"]),
    dict(prompt="He said that " * 12, temperature=0.7, top_k=40, top_p=0.9, min_p=0.02, seed=5, max_tokens=24, ignore_eos=True),
    dict(prompt="Once upon a time", temperature=0, max_tokens=300, ignore_eos=True),
]
WRONG = dict(prompt="x", max_tokens=1, top_p=7.0)
QUIET_S = 1.3  # past --resume-window: what the journal keeps of answers is gone
OPTIONS = ["--replicas", "2", "--journal", "DIR/journal", "--resume-window", "1", "--canary", "0"]
RARE = {"kill": 20, "drain": 20}


class Refused(Exception):
    """A request that was told that it could not be done, with a code for it."""


def tokens_of(chunks):
    text, tokens = "", []
    for chunk in chunks:
        text += chunk.text
        tokens += [(t.id, t.logprob if t.HasField("logprob") else None) for t in chunk.tokens]
        yield text, tokens


class Rounds:
    """Requests to one service, and what they answer undisturbed."""

    def __init__(self, service):
        self.service, self.n, self.wanted = service, 0, None
        self.pool = concurrent.futures.ThreadPoolExecutor(8)
        self.channels = [grpc.insecure_channel(service.target, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(4)]
        self.stubs = [rpc.GenerationStub(c) for c in self.channels]

    # Each returns what is compared, or raises grpc.RpcError.

    def resumed(self):
        request_id = f"f{self.n}-{time.monotonic_ns()}"
        call = self.stubs[0].GenerateStream(pb.GenerateRequest(request_id=request_id, **REQUESTS[0]), timeout=120)
        n, text = 0, ""
        for text, tokens in tokens_of(call):
            n = len(tokens)
            if n >= 8:
                break
        call.cancel()
        *_, (rest, tokens) = tokens_of(self.stubs[0].GenerateStream(
            pb.GenerateRequest(request_id=request_id, resume=True, resume_from=n), timeout=120))
        return text + rest

    def choices(self):
        return chaos.ask(self.stubs[1], REQUESTS[1], "")

    def unary(self):
        answer = self.stubs[2].Generate(pb.GenerateRequest(**REQUESTS[2]), timeout=120)
        return answer.text, [t.id for t in answer.tokens]

    def left(self):
        call = self.stubs[3].GenerateStream(pb.GenerateRequest(**REQUESTS[3]), timeout=120)
        for text, tokens in tokens_of(call):
            if len(tokens) >= 5:
                call.cancel()
                return tokens[:5]
        return None

    def wrong(self):
        try:
            self.stubs[3].Generate(pb.GenerateRequest(**WRONG), timeout=60)
        except grpc.RpcError as error:
            if error.code() != CODE.INVALID_ARGUMENT:
                raise
            return error.details()
        return None

    def questions(self):
        channel = self.service.channel
        health = channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=60)
        listed = list(channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")(iter([b"\x3a\x01*"]), timeout=60))
        model = self.stubs[3].GetModel(pb.GetModelRequest(), timeout=60)
        self.service.cluster.GetStatus(pb.GetStatusRequest(), timeout=60)
        return health != b"", listed, model.SerializeToString()

    def one(self, what):
        """Its answer, or Refused. What was never accepted is asked again."""
        end = time.monotonic() + 120
        while True:
            try:
                return what()
            except grpc.RpcError as error:
                if "no replica serves now" in (error.details() or "") and time.monotonic() < end:
                    time.sleep(0.05)
                    continue
                if error.code() == CODE.RESOURCE_EXHAUSTED:
                    raise Refused(error.details()) from error
                raise chaos.Failed(f"{what.__name__}: {error.code()}: {error.details()}") from error

    def run(self):
        """The refusals of a round, all else being as it should."""
        self.n += 1
        asked = [self.resumed, self.choices, self.unary, self.left, self.wrong, self.questions]
        jobs = [self.pool.submit(self.one, what) for what in asked]
        answers, refusals = [], []
        for what, job in zip(asked, jobs):
            try:
                answers.append(job.result())
            except Refused as refused:
                answers.append(None)
                refusals.append(f"{what.__name__}: {refused}")
        if self.wanted is None:
            self.wanted = answers
        for what, got, wanted in zip(asked, answers, self.wanted):
            if got is not None and got != wanted:
                raise chaos.Failed(f"{what.__name__}: another answer: {got} for {wanted}")
        return refusals


class Steady:
    """One service and one role; as a `with` block."""

    def __init__(self, page, role, model, options, names):
        self.page, self.role, self.names = page, role, names
        self.service = start.Service(model, options + OPTIONS)

    def __enter__(self):
        self.page.clear()
        with start.armed(self.page, self.role):
            self.service.__enter__()
        self.rounds = Rounds(self.service)
        self.turn = 0
        return self

    def __exit__(self, *failure):
        self.service.__exit__(*failure)

    # ---- what happens beside a round ----

    def kill(self):
        """A rank: of the replicas in turn."""
        self.turn ^= 1
        os.kill(self.service.status().replicas[self.turn].ranks[0].pid, signal.SIGKILL)
        self.rounds_until(lambda: self.whole(), 90)

    def drain(self):
        self.turn ^= 1
        done = subprocess.run([chaos.GANTRY, "drain", "--run-dir", str(self.service.run_dir), str(self.turn), "--restart", "--grace", "0"],
                              capture_output=True, text=True, timeout=120)
        self.drained = done.returncode, done.stderr

    def whole(self):
        status = self.service.status()
        return status.state == "serving"

    def rounds_until(self, what, seconds):
        end = time.monotonic() + seconds
        while not what():
            if time.monotonic() > end:
                raise chaos.Failed("the service does not become whole again")
            time.sleep(0.05)

    def phase(self, name):
        """A round with what belongs to it; its refusals."""
        if name == "stream":
            return self.rounds.run()
        job = self.rounds.pool.submit(getattr(self, name))
        refusals = self.rounds.run()
        job.result()
        self.rounds_until(self.whole, 90)
        return refusals + self.rounds.run()

    # ---- what there is ----

    def record(self):
        """{site id: (phase, calls in one)}: the cheapest phase that comes by there."""
        for _ in range(4):
            self.rounds.run()
        found = {}
        for name, times in (("stream", 6), ("drain", 2), ("kill", 4)):
            before = {i: s.calls for i, s in self.page.sites().items()}
            for _ in range(times):
                if self.phase(name):
                    raise chaos.Failed("an undisturbed request was refused")
            for i, s in self.page.sites().items():
                more = s.calls - before.get(i, 0)
                if more and i not in found:
                    found[i] = name, max(1, more // times)
        for _ in range(4):
            self.rounds.run()
        self.settle()
        self.usual = self.held()
        for _ in range(3):
            self.rounds.run()
            self.settle()
            self.keep_most(self.held())
        return found

    def processes(self):
        status = self.service.status()
        return [self.service.process.pid] if self.role == "serve" else [r.ranks[0].pid for r in status.replicas if r.ranks]

    def held(self):
        """{pid: {site: (blocks, bytes)}}, descriptors as site 0."""
        return {pid: {**self.page.held(pid), 0: (len(os.listdir(f"/proc/{pid}/fd")), 0)} for pid in self.processes()}

    def keep_most(self, held):
        for pid, sites in held.items():
            old = self.usual.setdefault(pid, {})
            for site, (blocks, size) in sites.items():
                have = old.get(site, (0, 0))
                old[site] = max(have[0], blocks), max(have[1], size)

    def settle(self):
        self.service.wait_for(self.service.is_free, 60, "all KV blocks to be free")
        time.sleep(QUIET_S)

    def leaks(self, again):
        """What grows each time that the fault is there: again() brings it about once more, or is false. Once is none: a buffer that
        is kept for use goes by the name of whom made it grow last."""
        grown = self.growth()
        if grown:
            self.rounds.run()
            self.settle()
            grown = self.growth()
        for _ in range(2):
            if not grown or not again():
                break
            self.settle()
            more = self.growth()
            grown = {key: more[key] for key in grown if key in more and more[key][0] > grown[key][0]}
        sites = self.page.sites()
        self.keep_most(self.held())
        return [f"{blocks} blocks, {size} bytes of {self.names.of(sites[site]) if site else 'descriptors'}"
                for (_, site), (blocks, size) in grown.items()]

    def growth(self):
        found = {}
        for pid, sites in self.held().items():
            if pid not in self.usual:
                continue  # started since: leaks() takes its first figure
            for site, (blocks, size) in sites.items():
                usual = self.usual[pid].get(site, (0, 0))
                slack = 4 if site == 0 else 0  # descriptors: connections of clients come and go
                if blocks > usual[0] + slack:
                    found[pid, site] = blocks - usual[0], size - usual[1]
        return found

    def strike(self, point, phase):
        """What became of the requests when the point failed, or None: it was not reached."""
        hits, losses = self.page.hits(), sum(r.losses for r in self.service.status().replicas)
        point.arm(self.page)
        try:
            refusals = []
            for _ in range(4 if phase == "stream" else 2):
                refusals += self.phase(phase)
                if self.page.hits() != hits:
                    break
        finally:
            self.page.disarm(point.site)
        if self.page.hits() == hits:
            return None
        self.service.wait_for(self.whole, 90, "the service to be whole again")
        if refusals and (point.is_invisible or len(refusals) > 1):
            raise chaos.Failed("refused: " + "; ".join(refusals))
        lost = sum(r.losses for r in self.service.status().replicas) - losses > (phase == "kill")
        if lost and point.is_invisible:
            raise chaos.Failed("a replica was lost")
        if self.rounds.run():
            raise chaos.Failed("refused after the fault")
        self.service.wait_for(self.service.is_free, 60, "all KV blocks to be free")
        return "a request refused" if refusals else "a replica lost" if lost else "unnoticed"

    def judge(self, point, phase):
        outcome = self.strike(point, phase)
        if outcome is None:
            return "not reached", ""
        leaks = self.leaks(lambda: self.strike(point, phase) is not None)
        if leaks:
            raise chaos.Failed("it holds more each time: " + "; ".join(leaks[:6]))
        return outcome, ""
