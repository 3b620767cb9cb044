#!/usr/bin/env python3
"""Promise P2 through the whole program: coordinator, mpirun, gRPC, our own client.

One undisturbed service (tp 1, pp 1, one thread) answers three requests (greedy from BOS alone, sampled over everything,
sampled with filters). Every other service must give the same token ids, the same log-probabilities and the same top
candidates, digit for digit as printed (17 significant digits: equal text is equal bits). The greedy text in f32
must also equal expected_greedy_200.txt, which another program wrote. tests/layout compares the same inside one process, over more
layouts; here it is the path that users take. A part of the matrix runs by default; GANTRY_BITS=all runs all of it.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

GANTRY = os.environ["GANTRY"]
MODEL = pathlib.Path(os.environ["GANTRY_SOURCE_DIR"]) / "tests" / "models" / "stories260k"
SOURCE = pathlib.Path(os.environ["GANTRY_SOURCE_DIR"])
sys.path.insert(0, str(SOURCE / "tests" / "common"))
import runner  # noqa: E402

CLIENT_TIMEOUT_S = int(60 * runner.SLOW)

REQUESTS = {
    "greedy": ["", "--temperature", "0", "--max-tokens", "200", "--logprobs", "3"],
    "sampled": ["Once upon a time there was a big red", "--temperature", "0.9", "--seed", "11", "--max-tokens", "120",
                "--ignore-eos", "--logprobs", "3"],
    "filtered": ["Lily went to the", "--temperature", "1.2", "--top-k", "40", "--top-p", "0.9", "--min-p", "0.02",
                 "--seed", "12", "--max-tokens", "120", "--ignore-eos", "--logprobs", "3"],
}


class Service:
    """A `gantry serve` that lives as long as the `with` block and must end with 0."""

    def __init__(self, options):
        self.dir = tempfile.TemporaryDirectory(prefix="gantry-bits-")
        self.run_dir = pathlib.Path(self.dir.name) / "run"
        self.options = options

    def __enter__(self):
        self.process = runner.start(
            [GANTRY, "serve", str(MODEL), "--listen", "127.0.0.1:0", "--run-dir", str(self.run_dir), *self.options],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        end = time.monotonic() + CLIENT_TIMEOUT_S
        while not (self.run_dir / "endpoint.json").exists():
            if self.process.poll() is not None or time.monotonic() > end:
                sys.exit(f"serve {' '.join(self.options)} did not start:\n{self.process.communicate()[0]}")
            time.sleep(0.02)
        self.target = f"127.0.0.1:{json.loads((self.run_dir / 'endpoint.json').read_text())['port']}"
        waited = subprocess.run([GANTRY, "status", "--connect", self.target, "--wait", str(CLIENT_TIMEOUT_S)],
                                capture_output=True, text=True)
        if waited.returncode != 0:
            self.process.terminate()
            sys.exit(f"serve {' '.join(self.options)} is not SERVING:\n{self.process.communicate()[0]}")
        return self

    def __exit__(self, *failure):
        if failure[0] is not None:
            runner.end_all()
            self.dir.cleanup()
            return
        self.process.terminate()
        out = self.process.communicate(timeout=CLIENT_TIMEOUT_S)[0]
        if self.process.returncode != 0:
            sys.exit(f"serve {' '.join(self.options)} ended with {self.process.returncode}:\n{out}")
        self.dir.cleanup()

    def start(self, request):
        return runner.start([GANTRY, "generate", "--connect", self.target, "--json", "--timeout", str(CLIENT_TIMEOUT_S),
                                 *request], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer(process, what):
    """(text, tokens) of a finished `generate --json`; numbers stay the text that was printed."""
    out, err = process.communicate(timeout=2 * CLIENT_TIMEOUT_S)
    if process.returncode != 0:
        sys.exit(f"{what}: generate ended with {process.returncode}: {err}")
    text, tokens = "", []
    for line in out.splitlines():
        message = json.loads(line, parse_float=str)
        text += message["text"]
        tokens += message["tokens"]
    return text, tokens


def ask_all(service, what, crowd=0):
    """The three answers, asked at once, beside `crowd` other streams of other lengths."""
    others = [service.start(["The cat sat", "--seed", str(100 + i), "--max-tokens", str(20 + 12 * i), "--ignore-eos"])
              for i in range(crowd)]
    running = {name: service.start(request) for name, request in REQUESTS.items()}
    answers = {name: answer(process, f"{what}, {name}") for name, process in running.items()}
    for process in others:
        answer(process, f"{what}, crowd")
    return answers


def kv_used(service):
    status = subprocess.run([GANTRY, "status", "--connect", service.target, "--json"], capture_output=True, text=True,
                            check=True)
    return json.loads(status.stdout)["replicas"][0]["kv_blocks_used"]


def check_free(service, what):
    end = time.monotonic() + 10 * runner.SLOW
    while kv_used(service) != 0:
        if time.monotonic() > end:
            sys.exit(f"{what}: {kv_used(service)} KV blocks are still held")
        time.sleep(0.05)


def configurations(fmt):
    """(name, serve options, other streams). The first is the undisturbed one."""
    base = ["--format", fmt, "--threads", "1"]
    yield "tp 1 pp 1", base + ["--tp", "1", "--pp", "1"], 0
    for tp in (1, 2, 4):
        for pp in (1, 2, 5):
            if (tp, pp) != (1, 1):
                yield f"tp {tp} pp {pp}", base + ["--tp", str(tp), "--pp", str(pp)], 0
    yield "15 others, tp 2 pp 2", base + ["--tp", "2", "--pp", "2"], 15
    for chunk in ("1", "7", "64"):
        yield f"chunk {chunk}", base + ["--tp", "1", "--pp", "1", "--chunk", chunk], 0
    for mask in ("scalar", "avx2", "avx512", "avx512bf16"):
        yield f"cpu mask {mask}", base + ["--tp", "1", "--pp", "1", "--cpu-mask", mask], 0
    for threads in ("2", "3"):
        yield f"{threads} threads", ["--format", fmt, "--threads", threads, "--tp", "1", "--pp", "1"], 0


# Enough to see every mechanism through the real transport; tests/layout has the rest of the matrix in process.
SHORT = {"tp 1 pp 1", "tp 2 pp 1", "tp 4 pp 1", "tp 1 pp 5", "tp 2 pp 2", "15 others, tp 2 pp 2", "chunk 7", "cpu mask scalar",
         "3 threads"}

SHORT_FP8 = {"tp 1 pp 1", "tp 2 pp 2", "cpu mask scalar"}


def main():
    expected = (MODEL / "expected_greedy_200.txt").read_text()
    n = 0
    for fmt in ("f32", "bf16", "fp8"):
        wanted = None
        for name, options, crowd in configurations(fmt):
            if os.environ.get("GANTRY_BITS") != "all" and name not in (SHORT_FP8 if fmt == "fp8" else SHORT):
                continue
            what = f"{fmt}, {name}"
            with Service(options) as service:
                got = ask_all(service, what, crowd)
                check_free(service, what)
            wanted = wanted or got
            for request in REQUESTS:
                if got[request] != wanted[request]:
                    sys.exit(f"{what}: {request} differs from tp 1 pp 1:\n{got[request][0]}\n{wanted[request][0]}")
            if fmt == "f32" and got["greedy"][0] != expected:
                sys.exit(f"{what}: greedy text differs from expected_greedy_200.txt:\n{got['greedy'][0]}")
            n += 1
            print(f"same bits: {what}", flush=True)
    print(f"{n} services, {len(REQUESTS)} requests each: all equal")
    leftovers = subprocess.run(["bash", str(SOURCE / "tests/common/no_leftovers.sh"), "gantry-bits-"])
    return leftovers.returncode


sys.exit(main())
