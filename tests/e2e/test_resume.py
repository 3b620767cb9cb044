#!/usr/bin/env python3
"""A coordinator that dies is a pause: with --journal its ranks wait, the next one takes them over, and every client goes on at the
token where it was, with exactly the tokens, log-probabilities and text that it would have had.

Thirteen requests of mixed sampling, some for two or three answers, are under way when the coordinator is killed; another is started
with the same journal. The clients resume at their offsets; what they have in the end is compared with an undisturbed service's. The ranks must be the same processes. Then the
coordinator and a rank die together; a client's connection breaks alone; answers are resumed by others, by nobody, too late, and
too far; `gantry generate` must print the bytes of an undisturbed run across all of it. At the end nothing is left.
"""
import json
import os
import pathlib
import random
import shutil
import signal
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
grpc, pb, rpc = chaos.grpc, chaos.gantry_pb2, chaos.gantry_pb2_grpc
CODE = grpc.StatusCode

MODEL = SOURCE / "model" / "demo"
PATIENCE_S = 120 * chaos.SLOW
# They last until somebody kills the coordinator.
REQUESTS = [r if "stop" in r else dict(r, max_tokens=(600 - 5 * i - len(r["prompt"]) // 3) // r.get("n", 1))
            for i, r in enumerate(chaos.REQUESTS)]
REQUESTS += [dict(prompt="The king", temperature=0.8, seed=11, max_tokens=600, ignore_eos=True, logprobs=5),
             dict(prompt="A letter", temperature=0, max_tokens=600, ignore_eos=True)]
LONG = len(REQUESTS) - 1
THREE = dict(prompt="The captain", n=3, temperature=1, seed=21, max_tokens=250, ignore_eos=True, logprobs=2)
REQUESTS.append(THREE)
if chaos.SLOW > 1:  # shorter ones still last until then; those of chaos.REQUESTS are
    for r in REQUESTS:
        r["max_tokens"] //= 1 if "stop" in r else 3


class Service(chaos.DurableService):
    def __init__(self, options):
        super().__init__(MODEL, options)


class Reader(threading.Thread):
    """A client that resumes until it has the whole answer."""

    def __init__(self, service, request, request_id):
        super().__init__(daemon=True)
        self.answer = chaos.Answer(service, request, request_id, PATIENCE_S)
        self.error = None

    def n_tokens(self):
        return sum(map(len, self.answer.tokens))

    def run(self):
        try:
            self.answer.run()
        except Exception as error:  # noqa: BLE001 - whatever it is, the test must say so
            self.error = repr(error)


def ask(service, i, request_id):
    stub = rpc.GenerationStub(grpc.insecure_channel(service.target))
    return chaos.ask(stub, REQUESTS[i], request_id)


def crowd(service, name):
    readers = [Reader(service, request, f"{name}-{i}") for i, request in enumerate(REQUESTS)]
    for r in readers:
        r.start()
    for r in readers:
        r.answer.is_told.wait(30 * chaos.SLOW)
    return readers


def finish(readers, wanted, what):
    for r in readers:
        r.join(PATIENCE_S)
    for i, r in enumerate(readers):
        if r.error or not r.answer.is_whole():
            raise chaos.Failed(f"{what}: {r.answer.request_id}: {r.error or 'no end'}")
        for k, (have, want) in enumerate(zip(r.answer.answers(), wanted[i])):
            if have != want:
                at = next((k for k, (a, b) in enumerate(zip(have[1], want[1])) if a != b), "the end")
                raise chaos.Failed(f"{what}: {r.answer.request_id}, choice {k} differs at token {at} ({len(have[1])} of {len(want[1])})")
    n = sum(r.answer.n_resumed > 0 for r in readers)
    print(f"  {what}: {len(readers)} answers equal, {n} of them resumed", flush=True)
    return n


def check(ok, claim, seen=""):
    if not ok:
        raise chaos.Failed(f"{claim}: {seen}")


def under_way(readers, rng, service):
    """Most of them have some tokens and none of the long ones is over."""
    service.wait_for(lambda: sum(r.n_tokens() > 20 for r in readers) >= 10, 30, "streams to be under way")
    time.sleep(rng.uniform(0, 0.1))


def killed(service, wanted, rng):
    before = service.pids()
    readers = crowd(service, f"kill{rng.random()}")
    under_way(readers, rng, service)
    service.kill()
    time.sleep(rng.uniform(0, 1))
    service.start()
    n = finish(readers, wanted, "coordinator killed")
    check(n >= 5, "streams were under way when the coordinator died", n)
    check(service.pids() == before, "the ranks are the same processes", (before, service.pids()))


def killed_with_rank(service, wanted, rng):
    before = service.status().replicas[0]
    readers = crowd(service, f"both{rng.random()}")
    under_way(readers, rng, service)
    service.kill()
    os.kill(rng.choice(before.ranks).pid, signal.SIGKILL)
    service.start()
    finish(readers, wanted, "coordinator and a rank killed")
    after = service.status().replicas[0]
    check(after.generation == before.generation + 1, "a new generation", after.generation)
    check(not {k.pid for k in after.ranks} & {k.pid for k in before.ranks}, "all ranks are new ones")


def connections(service, wanted):
    """Connections break, the coordinator lives."""
    stub = rpc.GenerationStub(service.channel)
    readers = crowd(service, "cut")
    for _ in range(2):
        time.sleep(0.1)
        for r in readers:
            r.answer.cut()
    finish(readers, wanted, "connections cut")

    def resume(request_id, at=0, unary=False):
        request = pb.GenerateRequest(request_id=request_id, resume=True, resume_from=at)
        return stub.Generate(request, timeout=PATIENCE_S) if unary else list(stub.GenerateStream(request, timeout=PATIENCE_S))

    whole = resume("cut-0", unary=True)
    check((whole.text, [t.id for t in whole.tokens]) == (wanted[0][0][0], [t[0] for t in wanted[0][0][1]]), "unary gives all of it")
    chunks = resume("cut-1", 100)
    ids = [t.id for c in chunks for t in c.tokens]
    check(ids == [t[0] for t in wanted[1][0][1]][100:], "a complete answer from token 100 on", len(ids))
    check(wanted[1][0][0].encode()[chunks[0].text_offset:].decode() == "".join(c.text for c in chunks), "and its text")
    chunks = resume("cut-1", len(wanted[1][0][1]))
    check(len(chunks) == 1 and chunks[0].HasField("finished") and not chunks[0].tokens, "all tokens are had: the end alone")
    three = f"cut-{REQUESTS.index(THREE)}"
    whole = resume(three, unary=True)
    answers = [(whole.text, whole.tokens)] + [(c.text, c.tokens) for c in whole.choices]
    check([(text, [t.id for t in tokens]) for text, tokens in answers]
          == [(text, [t[0] for t in tokens]) for text, tokens, _, _ in wanted[REQUESTS.index(THREE)]], "unary gives all choices")
    command = [chaos.GANTRY, "generate", "--resume", "--request-id", three, "--connect", service.target]
    texts = ""
    for k, (text, _) in enumerate(answers):
        texts += ("\n" if texts and texts[-1] != "\n" else "") + f"--- choice {k} of 3 ---\n{text}"
    check(subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S).stdout.decode() == texts, "--resume prints all choices")
    for arguments, code, word in ((("cut-1", 5000), CODE.INVALID_ARGUMENT, "resume_from"), (("nobody",), CODE.NOT_FOUND, "nobody"),
                                  ((three, 3), CODE.INVALID_ARGUMENT, "resume_from_choices")):
        try:
            resume(*arguments)
            raise chaos.Failed(f"resume {arguments} was answered")
        except grpc.RpcError as error:
            check(error.code() == code and word in error.details(), f"resume {arguments}", error)
    first = stub.GenerateStream(pb.GenerateRequest(request_id="two", **REQUESTS[LONG]), timeout=PATIENCE_S)
    next(first)
    second = resume("two")
    check([t.id for c in second for t in c.tokens] == [t[0] for t in wanted[LONG][0][1]], "who resumes reads all")
    try:
        for _ in first:
            pass
        check(False, "the first reader is told", "it ended well")
    except grpc.RpcError as error:
        check(error.code() == CODE.CANCELLED and "resumed" in error.details(), "the first reader is told", error)
    check(ask(service, 5, "cut-5") == wanted[5], "an id whose answer is complete may be used again")


def said(output, is_json):
    """What a run of `gantry generate` said: its bytes, or the text, ids and number of ends of each choice."""
    if not is_json:
        return output
    choices = {}
    for line in output.splitlines():
        m = json.loads(line)
        one = choices.setdefault(m["choice"], ["", [], 0])
        choices[m["choice"]] = [one[0] + m["text"], one[1] + [t["id"] for t in m["tokens"]], one[2] + ("finished" in m)]
    return choices


def generate(service, *more):
    """Our own client, across a killed coordinator: what an undisturbed run says."""
    command = [chaos.GANTRY, "generate", "It was a bright morning", "--connect", service.target, "--temperature", "0.9", "--seed", "77",
               "--ignore-eos", *more]
    is_json = "--json" in more
    wanted = subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S).stdout
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as client:
        head = client.stdout.read(200)
        service.kill()
        service.start()
        rest, error = client.communicate(timeout=PATIENCE_S)
    check(client.returncode == 0, "gantry generate ends well", error)
    check(said(head + rest, is_json) == said(wanted, is_json), "gantry generate says the same", (len(head + rest), len(wanted)))
    print("  gantry generate: equal", flush=True)


def interrupted(service):
    """Ctrl-C is meant: nobody will come back, and the service is told."""
    command = [chaos.GANTRY, "generate", "It was", "--connect", service.target, "--ignore-eos", "--max-tokens", "980"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as client:
        client.stdout.read(5)
        client.send_signal(signal.SIGINT)
        client.communicate(timeout=PATIENCE_S)
    check(client.returncode == 9, "an interrupted client says so", client.returncode)
    service.wait_for(service.is_free, 15, "an interrupted stream to end before its window does")


def lost_patience():
    """Nobody comes back: the stream ends after the window; nobody starts another coordinator: so do the ranks."""
    with Service(["--tp", "2", "--threads", "1", "--resume-window", "1", "--orphan-grace", "2"]) as service:
        stub = rpc.GenerationStub(service.channel)
        call = stub.GenerateStream(pb.GenerateRequest(request_id="gone", **REQUESTS[LONG]), timeout=PATIENCE_S)
        next(call)
        call.cancel()
        service.wait_for(service.is_free, 20, "the stream to be given up")
        pids = service.pids()[0]
        service.kill()
        until = time.monotonic() + 30 * chaos.SLOW
        while any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids):
            check(time.monotonic() < until, "orphans end after their grace", pids)
            time.sleep(0.1)
        service.start()
        check(service.status().replicas[0].generation == 2, "what is gone is started again")
    print("  window and grace pass", flush=True)


def handover(wanted):
    """SIGTERM with --on-term handover: the streams stay for the next service."""
    with Service(["--tp", "2", "--threads", "1", "--on-term", "handover", "--grace", "0"]) as service:
        readers = crowd(service, "hand")
        service.wait_for(lambda: sum(r.n_tokens() > 20 for r in readers) >= 10, 30, "streams to be under way")
        pids = service.pids()[0]
        service.process.terminate()
        check(service.process.wait(60) == 0, "an orderly end", service.process.returncode)
        check(not any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids), "its ranks end with it")
        service.start()
        finish(readers, wanted, "handed over")


def other_weights(wanted):
    """The files are other ones when the streams go on: ranks that have loaded them are refused, and with the right ones they go on."""
    with tempfile.TemporaryDirectory(prefix="gantry-weights-") as folder:
        model = pathlib.Path(folder) / "model"
        shutil.copytree(MODEL, model)
        weights = model / "model.safetensors"
        weights.chmod(0o644)
        right = weights.read_bytes()
        with chaos.DurableService(model, ["--threads", "1", "--orphan-grace", "1", "--restarts", "1"]) as service:
            readers = crowd(service, "weights")
            service.wait_for(lambda: sum(r.n_tokens() > 5 for r in readers) >= 8, 30, "streams to be under way")
            pids = service.pids()[0]
            service.kill()
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            weights.write_bytes(right[:-64] + bytes([right[-64] ^ 1]) + right[-63:])
            service.launch()
            check(service.process.wait(chaos.START_S * chaos.SLOW) == 6, "other weights end the service with 6", service.process.returncode)
            check("have the files changed?" in service.log(), "and it says so")
            weights.write_bytes(right)
            service.start()
            finish(readers, wanted, "other weights in between")


def at_random(rng):
    """The driver of `./run bench chaos`, a few strikes."""
    command = [sys.executable, str(SOURCE / "tests" / "bench" / "chaos.py"), "--coordinator", "0.7", "--break", "0.2", "--kills", "4",
               "--streams", "4", "--replicas", "2", "--tp", "1", "--pp", "2", "--bound", "20", "--seed", str(rng.randrange(1000))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400 * chaos.SLOW)
    check(done.returncode == 0, "faults at random", done.stdout[-2000:] + done.stderr[-6000:])
    print("  " + next(line for line in done.stdout.splitlines() if line.startswith("seed")), flush=True)


def main():
    rng = random.Random(int(os.environ.get("GANTRY_SEED", "1")))
    with chaos.Service(MODEL, ["--tp", "1", "--pp", "1", "--threads", "1"]) as service:
        wanted = [ask(service, i, f"reference-{i}") for i in range(len(REQUESTS))]
    with Service(["--tp", "2", "--pp", "1", "--threads", "1"]) as service:
        print("one replica of tp 2", flush=True)
        killed(service, wanted, rng)
        killed_with_rank(service, wanted, rng)
        connections(service, wanted)
        generate(service, "--max-tokens", "600")
        generate(service, "--max-tokens", "300", "--n", "2", "--json")
        interrupted(service)
        service.wait_for(service.is_free, 20, "all KV blocks to be free")
    check(not list(service.journal.glob("journal-*")) if service.journal.exists() else True, "an orderly end empties the journal")
    lost_patience()
    handover(wanted)
    other_weights(wanted)
    at_random(rng)


try:
    main()
except chaos.Failed as failure:
    sys.exit(f"FAIL  {failure}")
