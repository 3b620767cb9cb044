#!/usr/bin/env python3
"""Replicas that others start, under load: two jobs of another shape than the service's own replica join it, are killed and come
again, and every answer is the undisturbed one (promise P3, across tp x pp and across mpiruns).

Then mixed profiles: a replica that computes in f32 joins one in bf16. A stream that moves between them says so in its last message; one
that was asked to be exact waits for its own profile and has its bits, or fails with a sentence.

Then coordinators that die: with a journal the jobs that have joined wait for the next one like its own ranks, with the same processes,
also where all replicas have joined; one that brings other weights is refused there as before. And a job that is told to stop while
it loads ends with 0.
"""
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import threading

SOURCE = pathlib.Path(os.environ["GANTRY_SOURCE_DIR"])
sys.path.insert(0, str(SOURCE / "tests" / "common"))
try:
    import chaos
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)
import grpc  # noqa: E402  (chaos has found it)
import gantry_pb2  # noqa: E402
import gantry_pb2_grpc  # noqa: E402

MODEL = SOURCE / "model" / "demo"
COMMON = ["--threads", "1", "--hang-timeout", "10", "--retries", "100"]
BF16, F32 = "cpu-bf16-v1", "cpu-f32-v1"


def claim(is_so, text):
    if not is_so:
        raise chaos.Failed(text)
    print(f"  ok    {text}", flush=True)


class Job:
    """A replica under an mpirun of its own."""

    def __init__(self, service, n, options, model=MODEL):
        port = json.loads((service.run_dir / "endpoint.json").read_text())["control_port"]
        environment = dict(os.environ, XDG_CACHE_HOME=service.dir.name, TMPDIR=service.dir.name,
                           GANTRY_CHAOS=service.dir.name, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                           OMPI_MCA_btl_vader_backing_directory=service.dir.name)
        command = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(n), chaos.GANTRY, "worker", "--join",
                   f"127.0.0.1:{port}", "--secret-file", str(service.run_dir / "token"), str(model), "--threads", "1", *options]
        self.log = open(pathlib.Path(service.dir.name) / f"job-{random.randrange(1 << 60)}", "wb")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL, env=environment)

    def ends(self, timeout_s=30):
        code = self.process.wait(timeout_s * chaos.SLOW)
        self.log.close()
        return code

    def kill(self):
        self.process.send_signal(signal.SIGTERM)
        self.ends()


def n_serving(service):
    return sum(r.state == "serving" for r in service.status().replicas)


def joined(service, n, options):
    have = n_serving(service)
    job = Job(service, n, options)
    service.wait_for(lambda: n_serving(service) > have, 60, f"a replica of {options} to join")
    return job


def pid_of(service, profile, tp, pp):
    """The leader of the first serving replica of that kind."""
    return next(r.ranks[0].pid for r in service.status().replicas
                if r.state == "serving" and (r.profile, r.tp, r.pp) == (profile, tp, pp))


def shapes():
    print("three shapes, two of them joined", flush=True)
    rng = random.Random(int(os.environ.get("GANTRY_SEED", "1")))
    wanted = chaos.undisturbed(MODEL)
    with chaos.Service(MODEL, COMMON + ["--tp", "1", "--pp", "1"]) as service:
        kinds = [(2, (1, 2)), (2, (2, 1))]
        jobs = [joined(service, n, ["--tp", str(tp), "--pp", str(pp)]) for n, (tp, pp) in kinds]
        with chaos.Crowd(service, wanted, 8) as crowd:
            for i in (0, 1):
                seen = crowd.n_tokens
                service.wait_for(lambda: service.status().streams >= 6, 30, "streams to run")
                chaos.time.sleep(rng.uniform(0.2, 1.0))
                (n, (tp, pp)) = kinds[i]
                os.kill(pid_of(service, BF16, tp, pp), signal.SIGKILL)
                claim(jobs[i].ends() != 0, f"the job of tp {tp} x pp {pp} ends when its leader is killed")
                service.wait_for(lambda: n_serving(service) == 2, 30, "it to be gone")
                jobs[i] = joined(service, n, ["--tp", str(tp), "--pp", str(pp)])
                service.wait_for(lambda: crowd.n_tokens > seen, 60, "tokens to go on")
            victim = next(r for r in service.status().replicas if not r.joined)
            os.kill(victim.ranks[0].pid, signal.SIGKILL)  # and from the service's own to the joined ones
            service.wait_for(lambda: n_serving(service) == 3, 60, "the service's own to be started again")
        crowd.check()
        claim(crowd.n_answers > 8, f"{crowd.n_answers} answers, {crowd.n_tokens} tokens: those of an undisturbed service")
    for job in jobs:
        claim(job.ends() == 0, "a joined job ends with 0 when the service does")


class Stream(threading.Thread):
    """One answer, as it comes."""

    def __init__(self, service, **request):
        super().__init__(daemon=True)
        self.stub = gantry_pb2_grpc.GenerationStub(service.channel)
        self.request = gantry_pb2.GenerateRequest(temperature=0, ignore_eos=True, **request)
        self.ids, self.started, self.finished, self.error = [], None, None, None
        self.start()

    def run(self):
        try:
            for chunk in self.stub.GenerateStream(self.request, timeout=120 * chaos.SLOW):
                self.started = self.started or (chunk.started if chunk.HasField("started") else None)
                self.ids += [t.id for t in chunk.tokens]
                self.finished = chunk.finished if chunk.HasField("finished") else None
        except grpc.RpcError as error:
            self.error = error

    def over(self):
        self.join(120)
        if self.is_alive():
            raise chaos.Failed("a stream does not end")


def alone(service, **request):
    s = Stream(service, **request)
    s.over()
    if s.error:
        raise chaos.Failed(str(s.error))
    return s


def halfway(service, stream):
    service.wait_for(lambda: len(stream.ids) >= 10, 60, "a stream to be on its way")


def begins_at(service, profile, **request):
    """A stream that was placed at a joined replica, and those that keep the service's own busy. All are idle, so the first one
    goes to the own; how many it takes until the other is the better place depends on how much slower that one's steps were."""
    busy = [Stream(service, prompt="The sea", max_tokens=900)]
    halfway(service, busy[0])
    while len(busy) < 40:
        stream = Stream(service, **request)
        halfway(service, stream)
        if stream.started.profile == profile:
            return stream, busy
        busy.append(stream)
    raise chaos.Failed(f"none of 40 streams begins at the replica of {profile}")


def all_over(streams):
    for stream in streams:
        stream.over()


def profiles():
    print("two profiles", flush=True)
    asked = dict(prompt="Once upon a time", max_tokens=900)
    with chaos.Service(MODEL, COMMON + ["--mixed-profiles", "--rejoin-wait", "120"]) as service:
        bf16 = alone(service, **asked)
        claim(bf16.started.profile == BF16 and not bf16.finished.profiles, "one profile is named once, at the start")
        job = joined(service, 1, ["--format", "f32"])
        f32, busy = begins_at(service, F32, **asked)
        all_over([f32, *busy])
        claim(f32.started.profile == F32 and not f32.finished.profiles, "an answer names the profile of the replica that it was placed on")

        free, exact = [], []
        for kind, is_exact in ((free, False), (exact, True)):
            service.wait_for(lambda: service.status().streams == 0, 60, "all to be over")
            leader = pid_of(service, F32, 1, 1)
            stream, busy = begins_at(service, F32, exact=is_exact, **asked)
            kind.append(stream)
            os.kill(leader, signal.SIGKILL)
            job.ends()
            if is_exact:
                job = joined(service, 1, ["--format", "f32"])
            all_over([stream, *busy])
            claim(kind[0].started.profile == F32, "it began at the replica that joined")
            claim(kind[0].error is None and len(kind[0].ids) == len(f32.ids), "a stream that loses its replica goes on")
            if not is_exact:
                job = joined(service, 1, ["--format", "f32"])
        claim(list(free[0].finished.profiles) == [F32, BF16], "one that moved to another profile says so at its end")
        claim(exact[0].ids == f32.ids and not exact[0].finished.profiles, "an exact one waited for its own, and has its bits")


def nobody_comes():
    with chaos.Service(MODEL, COMMON + ["--mixed-profiles", "--rejoin-wait", "1"]) as service:
        job = joined(service, 1, ["--format", "f32"])
        leader = pid_of(service, F32, 1, 1)
        lost, busy = begins_at(service, F32, exact=True, prompt="Once upon a time", max_tokens=900)
        os.kill(leader, signal.SIGKILL)
        job.ends()
        lost.over()
        claim(lost.error is not None and lost.error.code() == grpc.StatusCode.UNAVAILABLE and F32 in lost.error.details(),
              "an exact one whose profile does not come again fails, and says which")
        all_over(busy)
        claim(all(b.error is None for b in busy), "and nobody else does")


def joined_ranks(service):
    return {r.job: [rank.pid for rank in r.ranks] for r in service.status().replicas if r.joined and r.state == "serving"}


def spoilt_copy(service):
    """The model with two bytes of its weights changed."""
    copy = pathlib.Path(service.dir.name) / "spoilt"
    shutil.copytree(MODEL, copy)
    weights = copy / "model.safetensors"
    weights.chmod(0o644)
    with open(weights, "r+b") as f:
        f.seek(-64, os.SEEK_END)
        f.write(b"\1\2")
    return copy


def coordinator(own):
    """It is killed under streams, and the next one has the same replicas."""
    print(f"the coordinator dies, {'beside' if own else 'without'} a replica of its own", flush=True)
    wanted = chaos.undisturbed(MODEL)
    options = COMMON + (["--tp", "1"] if own else ["--external-only"])
    with chaos.DurableService(MODEL, options) as service:
        jobs = [joined(service, 2, ["--tp", "2"]), joined(service, 1, ["--tp", "1"])]
        n = n_serving(service)
        before = joined_ranks(service)
        with chaos.Crowd(service, wanted, 6) as crowd:
            service.wait_for(lambda: sum(a is not None and len(a.tokens[0]) > 20 for a in crowd.answers) >= 4, 60, "streams to be under way")
            digest = service.status().weights_digest
            service.kill()
            service.start(("serving", "degraded"))
            service.wait_for(lambda: n_serving(service) == n, 60, "all replicas to serve again")
            seen = crowd.n_answers
            service.wait_for(lambda: crowd.n_answers >= seen + 3, 120, "answers")
        crowd.check()
        claim(crowd.n_resumed > 0, f"{crowd.n_answers} answers, {crowd.n_resumed} times resumed: those of an undisturbed service")
        claim(joined_ranks(service) == before, "the jobs that had joined are there again, the same processes")
        claim(service.status().weights_digest == digest, "the weights are the same")
        service.kill()
        spoilt = Job(service, 1, ["--tp", "1"], spoilt_copy(service))  # it is there before the others are back
        service.start(("serving", "degraded"))
        claim(spoilt.ends(60) == 6, "a job with other weights is refused by the next coordinator")
        service.wait_for(lambda: n_serving(service) == n, 60, "all replicas to serve again")
        claim(joined_ranks(service) == before, "and the others are not")
    for job in jobs:
        claim(job.ends() == 0, "a joined job ends with 0 when the service does")


def attached(service, begin):
    """pids of the ranks that have attached since the log had `begin` bytes, by rank; None once one is ready."""
    log = service.log()[begin:]
    pids = {int(rank): int(pid) for rank, pid in re.findall(r"rank (\d+) attached from \S+ \(host \S+ pid (\d+)", log)}
    return None if "is ready" in log else pids


def stopped_while_loading():
    print("a joined job is told to stop while it loads", flush=True)
    with chaos.Service(MODEL, COMMON + ["--tp", "1"]) as service:
        for _ in range(10):
            begin = len(service.log())
            job = Job(service, 2, ["--tp", "2"])
            service.wait_for(lambda: attached(service, begin) is None or 1 in attached(service, begin), 60, "rank 1 to attach")
            pids = attached(service, begin)
            if pids is None:  # it was faster than we are
                job.kill()
                continue
            os.kill(pids[1], signal.SIGSTOP)
            service.wait_for(lambda: len(attached(service, begin) or [0, 1]) == 2, 60, "rank 0 to attach")
            if attached(service, begin) is not None and n_serving(service) == 1:
                service.process.terminate()
                chaos.time.sleep(0.5)
                os.kill(pids[1], signal.SIGCONT)
                claim(job.ends() == 0, "it ends with 0")
                return
            os.kill(pids[1], signal.SIGCONT)
            job.kill()
        raise chaos.Failed("no job could be caught while it loads")


try:
    shapes()
    profiles()
    nobody_comes()
    coordinator(own=True)
    coordinator(own=False)
    stopped_while_loading()
except chaos.Failed as failure:
    sys.exit(f"FAIL  {failure}")
