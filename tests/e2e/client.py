#!/usr/bin/env python3
"""A foreign client against a running `gantry serve`: what the public API promises, seen from outside.

    tests/e2e/client.py --run-dir DIR [--token-file FILE]     (reads endpoint.json there)
    tests/e2e/client.py --target HOST:PORT [--token-file FILE]

With --token-file (the one that the server was given) it also checks that nobody gets in without it; a
server on loopback without a token file asks for none.

Uses Google's own gRPC for Python, with stubs made from proto/*.proto at the start, so that nothing of
ours stands on both sides of the wire. Streams, replays, stops, cancels, lets deadlines pass, closes
connections under way, breaks every field's range, runs many streams at once and compares each with its
answer alone; at the end every KV block must be free again. Works with any model whose context is 128 or
more. Prints a line per failed check and `N passed, N failed`; exits 1 if one failed, 77 where grpcio is
not installed.
"""
import argparse
import importlib
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

try:
    import grpc
except ImportError:
    print("grpcio for Python is not installed (Debian: python3-grpcio): skipped")
    sys.exit(77)

ROOT = pathlib.Path(__file__).resolve().parents[2]
CODE = grpc.StatusCode
OPENING = "It was a bright morning, and the captain said to his men that"


# ---- bookkeeping ----

class Report:
    def __init__(self, verbose):
        self.passed, self.failed, self.verbose = 0, 0, verbose

    def check(self, ok, claim, seen=""):
        """Count one claim; a false one is printed with what was seen instead."""
        if ok:
            self.passed += 1
            if self.verbose:
                print(f"ok    {claim}", flush=True)
        else:
            self.failed += 1
            seen = " ".join(str(seen).split())
            print(f"FAIL  {claim}{': ' + seen[:400] if seen else ''}", flush=True)
        return bool(ok)

    def refused(self, call, codes, claim, word=None):
        """`call` must end with one of `codes` and a sentence, in which `word` (a field) stands."""
        codes = codes if isinstance(codes, tuple) else (codes,)
        try:
            seen = call()
        except grpc.RpcError as e:
            ok = e.code() in codes and len(e.details() or "") > 0 and (not word or word in e.details())
            return self.check(ok, f"{claim} is refused by {codes[0].name}", f"{e.code().name}, {e.details()!r}")
        return self.check(False, f"{claim} is refused by {codes[0].name}", f"answered {str(seen)[:200]!r}")


# ---- connection ----

def make_stubs(into):
    """Python modules of the .proto files, made in the folder `into`."""
    protos = [ROOT / "proto" / "gantry.proto", ROOT / "proto" / "health.proto"]
    plugin = "/usr/bin/grpc_python_plugin"
    subprocess.run(["protoc", f"--proto_path={ROOT / 'proto'}", f"--python_out={into}",
                    f"--grpc_python_out={into}", f"--plugin=protoc-gen-grpc_python={plugin}",
                    *map(str, protos)], check=True)
    sys.path.insert(0, into)
    return [importlib.import_module(m) for m in ("gantry_pb2", "gantry_pb2_grpc", "health_pb2", "health_pb2_grpc")]


def read_target(args):
    """(HOST:PORT, token or None)"""
    target, token_file = args.target, args.token_file
    if args.run_dir:
        endpoint = json.loads((args.run_dir / "endpoint.json").read_text())
        target = f"{endpoint['host']}:{endpoint['port']}"
    if not target:
        raise SystemExit("--target or --run-dir is needed")
    return target, token_file.read_text().strip() if token_file else None


class Client:
    """One connection. `pb` and the like are the generated modules."""

    def __init__(self, target, token, stubs):
        self.target, self.token, self.stubs = target, token, stubs
        self.pb, pb_grpc, self.health_pb, health_grpc = stubs
        # A pool of its own: closing this channel must not close another client's connection.
        self.channel = grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1),
                                                              ("grpc.enable_http_proxy", 0)])
        self.generation = pb_grpc.GenerationStub(self.channel)
        self.cluster = pb_grpc.ClusterStub(self.channel)
        self.health = health_grpc.HealthStub(self.channel)

    def another(self, token="same"):
        return Client(self.target, self.token if token == "same" else token, self.stubs)

    def metadata(self):
        return [("authorization", f"Bearer {self.token}")] if self.token else []

    def request(self, prompt=OPENING, **fields):
        r = self.pb.GenerateRequest(**fields)
        if isinstance(prompt, str):
            r.prompt = prompt
        elif prompt is not None:
            r.prompt_ids.ids.extend(prompt)
            r.prompt_ids.SetInParent()
        return r

    def generate(self, prompt=OPENING, timeout=60, **fields):
        return self.generation.Generate(self.request(prompt, **fields), timeout=timeout, metadata=self.metadata())

    def stream(self, prompt=OPENING, timeout=60, **fields):
        return self.generation.GenerateStream(self.request(prompt, **fields), timeout=timeout,
                                              metadata=self.metadata())

    def model(self):
        return self.generation.GetModel(self.pb.GetModelRequest(), timeout=20, metadata=self.metadata())

    def status(self):
        return self.cluster.GetStatus(self.pb.GetStatusRequest(), timeout=20, metadata=self.metadata())

    def raw(self, method, message, timeout=20):
        """Bytes as they are, for what the generated code would not send."""
        call = self.channel.unary_unary(method, request_serializer=lambda b: b, response_deserializer=lambda b: b)
        return call(message, timeout=timeout, metadata=self.metadata())


class Answer:
    """A stream read to its end."""

    def __init__(self, chunks):
        self.chunks = list(chunks)
        self.text = "".join(c.text for c in self.chunks)
        self.tokens = [t for c in self.chunks for t in c.tokens]
        self.ids = [t.id for t in self.tokens]
        self.started = self.chunks[0].started
        self.finished = self.chunks[-1].finished


# ---- checks ----

def check_health(c, r):
    hp = c.health_pb
    serving, unknown = hp.HealthCheckResponse.SERVING, hp.HealthCheckResponse.SERVICE_UNKNOWN
    for service in ("", "gantry.v1.Generation"):
        seen = c.health.Check(hp.HealthCheckRequest(service=service), timeout=20).status
        r.check(seen == serving, f"health Check({service!r}) says SERVING, without a token", seen)
    r.refused(lambda: c.health.Check(hp.HealthCheckRequest(service="no.such.Service"), timeout=20),
              CODE.NOT_FOUND, "health Check of an unknown service")
    for service, wanted in (("", serving), ("no.such.Service", unknown)):
        watch = c.health.Watch(hp.HealthCheckRequest(service=service), timeout=20)
        seen = next(watch).status
        r.check(seen == wanted, f"health Watch({service!r}) begins with the present state", seen)
        watch.cancel()


def check_auth(c, r):
    if not c.token:
        return
    for token, claim in ((None, "no token"), ("wrong" + c.token, "a wrong token"), (c.token[:-1], "a token cut short")):
        other = c.another(token=token)
        r.refused(lambda: other.model(), CODE.UNAUTHENTICATED, f"GetModel with {claim}")
        r.refused(lambda: list(other.stream(max_tokens=1)), CODE.UNAUTHENTICATED, f"GenerateStream with {claim}")
        other.channel.close()


def check_model(c, r):
    m = c.model()
    hexadecimal = len(m.weights_digest) == 32 and all(ch in "0123456789abcdef" for ch in m.weights_digest)
    r.check(hexadecimal, "the weights digest has 32 hex digits", m.weights_digest)
    r.check(m.name and m.family and m.profile, "GetModel names model, family and profile", m)
    r.check(min(m.n_layers, m.dim, m.n_heads, m.n_kv_heads, m.vocab, m.context, m.parameters) > 0
            and m.n_heads % m.n_kv_heads == 0, "GetModel gives the dimensions", m)
    s = c.status()
    r.check(s.state == "serving" and s.version and s.profile == m.profile and s.weights_digest == m.weights_digest,
            "GetStatus and GetModel agree on profile and digest", s)
    r.check(len(s.replicas) > 0 and all(len(p.ranks) == p.tp * p.pp for p in s.replicas), "every rank is in the status")
    r.check(all(k.heartbeat_age_us < 10_000_000 for p in s.replicas for k in p.ranks), "every rank's heartbeat is fresh")
    return m


def check_stream(c, r, model):
    a = Answer(c.stream(max_tokens=24, temperature=0, ignore_eos=True, request_id="e2e-stream"))
    r.check(a.chunks[0].HasField("started") and not any(x.HasField("started") for x in a.chunks[1:]),
            "only the first message carries `started`")
    r.check(a.chunks[-1].HasField("finished") and not any(x.HasField("finished") for x in a.chunks[:-1]),
            "only the last message carries `finished`")
    r.check(a.started.request_id == "e2e-stream", "the request's id comes back", a.started.request_id)
    r.check(a.started.profile == model.profile and a.started.weights_digest == model.weights_digest,
            "an answer names profile and weights")
    r.check(len(a.ids) == 24 and a.finished.usage.completion_tokens == 24, "24 tokens were asked, 24 come", len(a.ids))
    r.check(a.finished.reason == c.pb.FINISH_LENGTH, "it ends for its length", a.finished.reason)
    r.check(a.finished.usage.prompt_tokens == a.started.prompt_tokens > 1, "usage counts the prompt", a.finished.usage)
    r.check(len(a.text) > 0, "the tokens have a text")
    t = a.finished.timings
    r.check(0 < t.first_token_us <= t.total_us and t.queued_us <= t.first_token_us, "timings are in order", t)
    r.check(all(not x.HasField("logprob") and not x.top for x in a.tokens), "no log-probabilities unless asked")
    u = c.generate(max_tokens=24, temperature=0, ignore_eos=True)
    r.check([x.id for x in u.tokens] == a.ids and u.text == a.text, "unary and stream give the same answer")
    r.check(u.HasField("started") and u.HasField("finished") and u.started.request_id != "",
            "a unary answer has both ends, and an id was made")
    again = Answer(c.stream(max_tokens=24, temperature=0, ignore_eos=True))
    r.check(again.ids == a.ids, "greedy twice is the same", again.text)
    one = Answer(c.stream(max_tokens=1, temperature=0, ignore_eos=True))
    r.check(one.ids == a.ids[:1], "max_tokens 1 gives the first token", one.ids)
    alone = Answer(c.stream("", max_tokens=4, temperature=0, ignore_eos=True))
    r.check(alone.started.prompt_tokens <= 1 and len(alone.ids) == 4, "an empty text is BOS alone", alone.started)
    for special in ("<|bos|>", "<|eos|>", "</s>"):
        n = c.generate(8 * special, max_tokens=1, temperature=0).started.prompt_tokens
        r.check(n > 9, f"8 times {special!r} is text, not 8 special tokens", n)
    return a


def check_ids(c, r, a):
    """A prompt of ids: used as they are, and an answer can be continued by its own ids."""
    ids = a.ids[:12]
    x = c.generate(ids, max_tokens=5, temperature=0, ignore_eos=True)
    r.check(x.started.prompt_tokens == 12, "ids are the prompt as they are", x.started.prompt_tokens)
    y = c.generate(ids + [t.id for t in x.tokens][:3], max_tokens=2, temperature=0, ignore_eos=True)
    r.check([t.id for t in y.tokens] == [t.id for t in x.tokens][3:], "a prompt longer by its answer goes on as before")


def check_prefix(c, r):
    """What an earlier request has computed is not computed again, and the answer is the same."""
    ids = [3 + i * i % 251 for i in range(100)]
    fields = dict(max_tokens=40, temperature=1.0, seed=11, logprobs=2, ignore_eos=True)
    cold, warm = (c.generate(ids, **fields) for _ in range(2))
    r.check(cold.finished.usage.cached_tokens == 0, "a new prompt is computed", cold.finished.usage)
    r.check(warm.finished.usage.cached_tokens == 96, "a known one but for its last block", warm.finished.usage)
    r.check(list(cold.tokens) == list(warm.tokens), "with the same tokens and log-probabilities")
    longer = c.generate(ids + [t.id for t in cold.tokens][:30], max_tokens=1, temperature=0)
    r.check(longer.finished.usage.cached_tokens == 128, "the answer's own blocks are known too", longer.finished.usage)
    end = time.monotonic() + 5
    while time.monotonic() < end and all(p.cache_hits < 2 for p in c.status().replicas):
        time.sleep(0.05)
    r.check(any(p.cache_hits >= 2 and p.cache_tokens >= 224 and p.kv_blocks_cached > 0 for p in c.status().replicas),
            "status counts hits, tokens and kept blocks")


def check_sampling(c, r):
    fields = dict(max_tokens=32, temperature=1.2, top_k=50, top_p=0.95, min_p=0.01, ignore_eos=True)
    one, two = (Answer(c.stream(seed=7, **fields)) for _ in range(2))
    r.check(one.ids == two.ids and one.started.seed == 7, "the same seed gives the same tokens", (one.ids, two.ids))
    other = Answer(c.stream(seed=8, **fields))
    r.check(other.ids != one.ids, "another seed gives others")
    drawn = Answer(c.stream(max_tokens=32, ignore_eos=True))
    replay = Answer(c.stream(max_tokens=32, ignore_eos=True, seed=drawn.started.seed))
    r.check(drawn.ids == replay.ids, "a drawn seed replays its answer", (drawn.started.seed, drawn.ids, replay.ids))
    greedy = c.generate(max_tokens=8, temperature=0, ignore_eos=True)
    first = c.generate(max_tokens=8, temperature=5.0, top_k=1, ignore_eos=True)
    r.check(greedy.text == first.text, "top_k 1 is greedy at any temperature")


def check_logprobs(c, r):
    a = Answer(c.stream(max_tokens=12, temperature=0, logprobs=5, ignore_eos=True))
    r.check(all(t.HasField("logprob") and t.logprob <= 0 for t in a.tokens), "every token has its log-probability")
    r.check(all(len(t.top) == 5 for t in a.tokens), "5 alternatives were asked, 5 come", [len(t.top) for t in a.tokens])
    r.check(all([x.logprob for x in t.top] == sorted((x.logprob for x in t.top), reverse=True) for t in a.tokens),
            "alternatives fall in probability")
    r.check(all(t.top and t.top[0].id == t.id and t.top[0].logprob == t.logprob for t in a.tokens),
            "the greedy token is the first alternative")
    r.check(all(any(x.piece for x in t.top) for t in a.tokens), "alternatives show their bytes")
    none = Answer(c.stream(max_tokens=4, temperature=0, logprobs=0, ignore_eos=True))
    r.check(all(t.HasField("logprob") and not t.top for t in none.tokens), "logprobs 0 gives the chosen token's only")


def check_penalties(c, r):
    """Additive penalties can be done again on log-probabilities: those are the model's, and differ from logits by a constant."""
    presence, frequency, bias = 0.6, 0.3, {}
    plain = Answer(c.stream(max_tokens=60, temperature=0, ignore_eos=True, logprobs=20))
    bias[plain.ids[3]] = -5.0
    fields = dict(max_tokens=60, temperature=0, ignore_eos=True, logprobs=20, presence_penalty=presence,
                  frequency_penalty=frequency, logit_bias=[dict(id=k, bias=v) for k, v in bias.items()])
    a, made, wrong = Answer(c.stream(**fields)), {}, []
    for i, token in enumerate(a.tokens):
        score = {x.id: x.logprob - made.get(x.id, 0) * frequency - (x.id in made) * presence + bias.get(x.id, 0) for x in token.top}
        best, least = max(score.values()), token.top[-1].logprob
        if best > least + 1e-4 and (token.id not in score or score[token.id] < best - 1e-4):
            wrong.append((i, token.id, best))
        made[token.id] = made.get(token.id, 0) + 1
    r.check(not wrong, "each token is the best of its adjusted row", wrong)
    r.check(a.ids != plain.ids and max(made.values()) <= max(plain.ids.count(i) for i in plain.ids), "penalties make less repetition")
    r.check(list(a.tokens[0].top) == list(plain.tokens[0].top), "log-probabilities are the model's own")
    r.check(Answer(c.stream(**fields)).tokens == a.tokens, "the same twice")
    forced = Answer(c.stream(max_tokens=5, ignore_eos=True, logit_bias=[dict(id=plain.ids[0], bias=100.0)]))
    r.check(forced.ids == plain.ids[:1] * 5, "a bias of 100 decides", forced.ids)
    again = Answer(c.stream(max_tokens=60, temperature=0, ignore_eos=True, repetition_penalty=1.5))
    r.check(len(set(again.ids)) > len(set(plain.ids)), "a repetition penalty gives more different tokens",
            (len(set(again.ids)), len(set(plain.ids))))
    off = Answer(c.stream(max_tokens=60, temperature=0, ignore_eos=True, repetition_penalty=1.0, presence_penalty=0.0,
                          frequency_penalty=0.0, logprobs=20))
    r.check(off.tokens == plain.tokens, "penalties that are off change nothing")


class Choices:
    """A stream of several answers, read to its end: an Answer for each."""

    def __init__(self, chunks):
        self.chunks = list(chunks)
        self.answers = [Answer([x for x in self.chunks if x.choice == i]) for i in range(max(x.choice for x in self.chunks) + 1)]


def check_choices(c, r, model):
    fields = dict(max_tokens=30, temperature=1.1, seed=21, logprobs=2, ignore_eos=True, presence_penalty=0.3, repetition_penalty=1.1)
    one = Answer(c.stream(**fields))
    three = Choices(c.stream(n=3, **fields))
    r.check(len(three.answers) == 3 and [x.HasField("started") for x in three.chunks].count(True) == 1
            and three.chunks[0].HasField("started"), "3 answers were asked, 3 come, and `started` once")
    r.check(all([x.HasField("finished") for x in a.chunks].count(True) == 1 and a.chunks[-1].HasField("finished")
                for a in three.answers), "each answer has its own end, its last message")
    r.check(three.answers[0].tokens == one.tokens and three.answers[0].text == one.text, "choice 0 is the answer of n = 1")
    r.check(len({tuple(a.ids) for a in three.answers}) == 3, "the others have chance of their own")
    five = Choices(c.stream(n=5, **fields))
    r.check([a.tokens for a in five.answers[:3]] == [a.tokens for a in three.answers], "a choice does not depend on how many there are")
    whole = c.generate(n=3, **fields)
    parts = [whole] + list(whole.choices)
    r.check([x.choice for x in whole.choices] == [1, 2] and [list(x.tokens) for x in parts] == [a.tokens for a in three.answers]
            and [x.text for x in parts] == [a.text for a in three.answers], "unary and stream give the same answers")
    r.check(all(x.finished.usage.completion_tokens == 30 and x.finished.usage.prompt_tokens == whole.started.prompt_tokens
                for x in parts), "usage counts each answer's own tokens", [x.finished.usage for x in parts])
    r.check(not c.generate(n=1, **fields).choices, "n = 1 has no further choices")
    greedy = c.generate(n=2, max_tokens=10, temperature=0, ignore_eos=True)
    r.check(list(greedy.tokens) == list(greedy.choices[0].tokens), "greedy choices are alike")
    stop = one.text[len(one.text) // 2:][:2]
    cut = Choices(c.stream(n=3, stop=[stop], **fields))
    r.check([a.text for a in cut.answers] == [a.text.split(stop)[0] for a in three.answers], "a stop string ends its own answer only",
            (stop, [a.text for a in cut.answers]))
    sixteen = Choices(c.stream(n=16, max_tokens=3, ignore_eos=True, seed=4))
    r.check(len(sixteen.answers) == 16 and all(len(a.ids) == 3 for a in sixteen.answers), "16 choices are served")
    for n in (0, 17, 2**32 - 1):
        r.refused(lambda n=n: c.generate(n=n, max_tokens=1), CODE.INVALID_ARGUMENT, f"n = {n}", "n is")
        r.refused(lambda n=n: list(c.stream(n=n, max_tokens=1)), CODE.INVALID_ARGUMENT, f"n = {n} (stream)", "n is")
    call = c.stream(n=4, max_tokens=long_tokens(c, model), ignore_eos=True)
    for _ in range(3):
        next(call)
    call.cancel()
    r.check(wait_free(c), "4 cancelled choices leave no KV block behind within 5 s", holding(c))
    try:
        list(c.stream(timeout=0.03, n=4, max_tokens=long_tokens(c, model), ignore_eos=True))
        r.check(False, "a deadline ends all choices", "OK")
    except grpc.RpcError as e:
        r.check(e.code() == CODE.DEADLINE_EXCEEDED, "a deadline ends all choices", e.code().name)
    r.check(wait_free(c), "and leaves no KV block behind", holding(c))


def check_stops(c, r):
    a = Answer(c.stream(max_tokens=40, temperature=0, ignore_eos=True))
    middle = len(a.text) // 2
    # Stops that begin inside one token and end in another are the hard ones.
    for stop in (a.text[middle:middle + 1], a.text[middle:middle + 5]):
        cut = a.text.index(stop)
        b = Answer(c.stream(max_tokens=40, temperature=0, ignore_eos=True, stop=["\u2603 never", stop]))
        r.check(b.text == a.text[:cut], f"the text ends before the stop string {stop!r}", (b.text, a.text))
        r.check(b.finished.reason == c.pb.FINISH_STOP and b.finished.stop == stop, "the stop string is named", b.finished)
    stop_id = a.ids[10]
    b = Answer(c.stream(max_tokens=40, temperature=0, ignore_eos=True, stop_ids=[stop_id]))
    r.check(b.finished.reason == c.pb.FINISH_STOP and a.text.startswith(b.text)
            and [i for i in b.ids if i != stop_id] == a.ids[:a.ids.index(stop_id)],
            "a stop id ends the answer and is not in its text", (b.ids, a.ids, stop_id))


def check_ranges(c, r, model):
    nan, inf, bad = float("nan"), float("inf"), CODE.INVALID_ARGUMENT
    cases = [
        ("max_tokens", 0), ("temperature", -0.5), ("temperature", 100.5), ("temperature", nan), ("temperature", inf),
        ("top_k", 1025), ("top_p", 0.0), ("top_p", -0.5), ("top_p", 1.5), ("top_p", nan), ("min_p", -0.1),
        ("min_p", 1.1), ("min_p", nan), ("min_p", inf), ("logprobs", 21), ("stop", [""]), ("stop", ["x" * 257]),
        ("stop", [f"s{i}" for i in range(17)]), ("stop_ids", list(range(65))), ("stop_ids", [model.vocab]),
        ("presence_penalty", 2.01), ("presence_penalty", nan), ("frequency_penalty", -2.01), ("frequency_penalty", inf),
        ("repetition_penalty", 0.0), ("repetition_penalty", -1.0), ("repetition_penalty", 101.0), ("repetition_penalty", nan),
        ("logit_bias", [dict(id=model.vocab, bias=1.0)]), ("logit_bias", [dict(id=1, bias=100.5)]),
        ("logit_bias", [dict(id=1, bias=1.0)] * 2),
        ("logit_bias", [dict(id=i, bias=1.0) for i in range(301)]),
        ("request_id", "x" * 129), ("request_id", "line\nend")]
    for field, value in cases:
        shown = str(value) if len(str(value)) < 24 else f"{len(value)} long"
        fields = {"max_tokens": 4, field: value}
        r.refused(lambda f=fields: c.generate(**f), bad, f"{field} = {shown}", field)
        r.refused(lambda f=fields: list(c.stream(**f)), bad, f"{field} = {shown} (stream)", field)
    r.refused(lambda: c.generate(max_tokens=1, logit_bias=[dict(id=1, bias=nan)]), bad, "a bias that is no number", "LogitBias.bias")
    r.refused(lambda: c.generate(max_tokens=model.context + 1), (bad, CODE.RESOURCE_EXHAUSTED),
              "max_tokens over the context", "max_tokens")
    r.refused(lambda: c.generate([], max_tokens=1), bad, "an empty list of ids", "prompt_ids")
    r.refused(lambda: c.generate([model.vocab], max_tokens=1), bad, "an id past the vocabulary", "prompt_ids")
    r.refused(lambda: c.generate([0, 2**32 - 1], max_tokens=1), bad, "the largest id", "prompt_ids")
    both = c.request("a text", max_tokens=1)
    both.prompt_ids.ids.append(1)
    r.refused(lambda: c.generation.Generate(both, timeout=20, metadata=c.metadata()), bad, "text and ids together", "prompt")
    too_long = [3] * (model.context + 1)
    r.refused(lambda: c.generate(too_long, max_tokens=1), (bad, CODE.RESOURCE_EXHAUSTED), "a prompt over the context")
    for field, value in (("temperature", 100.0), ("top_k", 1024), ("top_p", 1.0), ("min_p", 1.0), ("logprobs", 20),
                         ("presence_penalty", -2.0), ("frequency_penalty", 2.0), ("repetition_penalty", 0.01),
                         ("repetition_penalty", 100.0), ("logit_bias", [dict(id=i, bias=100.0) for i in range(300)]),
                         ("stop", ["x" * 256] * 16), ("stop_ids", list(range(64))), ("request_id", "x" * 128)):
        try:
            seen = c.generate(**{"max_tokens": 2, field: value}).finished.usage.completion_tokens
            r.check(1 <= seen <= 2, f"{field} at its limit is served", seen)
        except grpc.RpcError as e:
            r.check(False, f"{field} at its limit is served", f"{e.code().name}, {e.details()}")


def check_malformed(c, r):
    """What no generated client sends. The server must refuse it and live."""
    generate, parse = "/gantry.v1.Generation/Generate", (CODE.INVALID_ARGUMENT, CODE.INTERNAL)
    for message, claim in ((b"\xff\xff\xff\xff", "not a message"), (b"\x0a\x05\xff\xfe\xfd\xfc\xfb", "a text that is not UTF-8"),
                           (b"\x0a\xff\xff\xff\xff\x07abc", "a length past the end"),
                           (b"\x12\x03\x0a\x01\x80", "a cut integer"), (b"\x4a\x02\xc3\x28", "a stop string that is not UTF-8")):
        r.refused(lambda m=message: c.raw(generate, m), parse, claim)
    for method in ("/gantry.v1.Generation/NoSuch", "/no.such.Service/Generate"):
        r.refused(lambda m=method: c.raw(m, b""), CODE.UNIMPLEMENTED, method)
    r.check(len(c.generate(max_tokens=2, ignore_eos=True).tokens) == 2, "after all that it serves")


def long_tokens(c, model):
    return model.context - len(OPENING) - 2  # a byte is at most a token: always fits


def check_cancel(c, r, model):
    call = c.stream(max_tokens=long_tokens(c, model), ignore_eos=True)
    seen = sum(len(next(call).tokens) for _ in range(3))
    call.cancel()
    try:
        rest = sum(len(chunk.tokens) for chunk in call)
        r.check(False, "a cancelled stream ends with CANCELLED", f"{seen + rest} tokens and OK")
    except grpc.RpcError as e:
        r.check(e.code() == CODE.CANCELLED, "a cancelled stream ends with CANCELLED", e.code().name)
    r.check(wait_free(c), "a cancelled stream's KV blocks are free within 5 s", holding(c))
    # A client whose process dies does not say goodbye: its connection closes.
    gone = c.another()
    calls = [gone.stream(max_tokens=long_tokens(c, model), ignore_eos=True) for _ in range(3)]
    for x in calls:
        next(x)
    gone.channel.close()
    r.check(wait_free(c), "a lost connection's KV blocks are free within 5 s", holding(c))


def check_deadline(c, r, model):
    # Enough at once that the deadline passes on any machine; some streams may not even have started.
    seen = []

    def run():
        try:
            list(c.stream(timeout=0.03, max_tokens=long_tokens(c, model), ignore_eos=True))
            seen.append("OK")
        except grpc.RpcError as e:
            seen.append(e.code().name)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    r.check(seen == ["DEADLINE_EXCEEDED"] * 8, "a deadline of 30 ms passes in mid-answer", seen)
    r.check(wait_free(c), "after a deadline the KV blocks are free within 5 s", holding(c))


def check_concurrent(c, r, n):
    """n streams at once, greedy and sampled, on several connections: each as if it were alone."""
    jobs = [dict(prompt=f"{OPENING} the {w}", max_tokens=20 + 3 * i, ignore_eos=True, seed=100 + i,
                 temperature=0.0 if i % 2 else 0.9)
            for i, w in zip(range(n), ("ship", "dog", "letter", "king", "whale", "rabbit", "house", "storm") * (n // 8 + 1))]
    alone = [Answer(c.stream(**job)) for job in jobs]
    clients = [c] + [c.another() for _ in range(3)]
    together = [None] * n

    def run(i):
        try:
            together[i] = Answer(clients[i % len(clients)].stream(**jobs[i]))
        except grpc.RpcError as e:
            together[i] = e

    threads = [threading.Thread(target=run, args=(i,)) for i in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for other in clients[1:]:
        other.channel.close()
    failed = [x for x in together if not isinstance(x, Answer)]
    r.check(not failed, f"{n} streams at once all end well", failed)
    different = [i for i in range(n) if isinstance(together[i], Answer) and together[i].ids != alone[i].ids]
    r.check(not different, f"each of {n} streams is what it was alone", f"differ: {different}")
    r.check(len({tuple(a.ids) for a in alone}) > n // 2, "the prompts have answers of their own")


# ---- KV blocks ----

def holding(c):
    return [dict(replica=p.replica, running=p.running, waiting=p.waiting, kv_blocks_used=p.kv_blocks_used)
            for p in c.status().replicas]


def wait_free(c, seconds=5.0):
    """Nothing running, nothing waiting, every KV block free, in every replica; the status of a replica
    is as old as its last heartbeat, hence the waiting."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        s = c.status()
        if s.streams == 0 and all(p.running == p.waiting == p.kv_blocks_used == 0 for p in s.replicas):
            return True
        time.sleep(0.05)
    return False


def check_free(c, r):
    r.check(all(p.kv_blocks_total > 0 and p.kv_block_tokens > 0 for p in c.status().replicas), "there are KV blocks")
    r.check(wait_free(c), "at the end every KV block is free", holding(c))


# ---- the run ----

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--target", help="HOST:PORT")
    p.add_argument("--run-dir", type=pathlib.Path, help="folder with endpoint.json (host, port)")
    p.add_argument("--token-file", type=pathlib.Path, help="the server's own; checks that it is needed")
    p.add_argument("--streams", type=int, default=16, help="at once in the concurrency check")
    p.add_argument("--verbose", action="store_true", help="print passed checks too")
    args = p.parse_args()
    target, token = read_target(args)
    report = Report(args.verbose)
    with tempfile.TemporaryDirectory() as folder:
        c = Client(target, token, make_stubs(folder))
        try:
            grpc.channel_ready_future(c.channel).result(timeout=20)
        except grpc.FutureTimeoutError:
            raise SystemExit(f"{target}: nothing answers there within 20 s") from None
        found = {}

        def part(name, check, *more):
            """A part that ends early fails once and lets the others run."""
            try:
                found[name] = check(c, report, *(found[m] if isinstance(m, str) else m for m in more))
            except Exception as e:  # noqa: BLE001 - whatever it is, it is a failed check
                text = f"{e.code().name}, {e.details()}" if isinstance(e, grpc.RpcError) else repr(e)
                report.check(False, f"part `{name}` runs to its end", text)

        part("health", check_health)
        part("auth", check_auth)
        part("model", check_model)
        part("stream", check_stream, "model")
        part("ids", check_ids, "stream")
        part("prefix", check_prefix)
        part("sampling", check_sampling)
        part("logprobs", check_logprobs)
        part("penalties", check_penalties)
        part("choices", check_choices, "model")
        part("stops", check_stops)
        part("ranges", check_ranges, "model")
        part("malformed", check_malformed)
        part("cancel", check_cancel, "model")
        part("deadline", check_deadline, "model")
        part("concurrent", check_concurrent, args.streams)
        part("free", check_free)
        c.channel.close()
    print(f"{report.passed} passed, {report.failed} failed")
    sys.exit(1 if report.failed or not report.passed else 0)


if __name__ == "__main__":
    main()
