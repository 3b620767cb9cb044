#!/usr/bin/env python3
"""`gantry batch`: the file of answers has the same bytes after kills, on every layout; what cannot be answered is said.

One run is not disturbed. Others of the same input, on other layouts, are killed (SIGKILL, SIGTERM, and one rank of theirs) as
their answers come, and started again with the same words until they end with 0.
"""
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(os.environ["GANTRY_SOURCE_DIR"]) / "tests" / "common"))
import runner  # noqa: E402

SOURCE = pathlib.Path(os.environ["GANTRY_SOURCE_DIR"])
GANTRY = os.environ["GANTRY"]
MODEL = SOURCE / "model" / "demo"
N = 120


class Failed(Exception):
    pass


def records(rng):
    for i in range(N):
        r = {"id": f"r{i}", "prompt": rng.choice(["Once upon a time", "The whale", "He said that", "She"]) + f" {i}",
             "max_tokens": rng.randrange(20, 150)}
        if i % 3 == 0:
            r["temperature"] = 0
        if i % 5 == 0:
            r["logprobs"] = 2
        if i % 7 == 0:
            r["stop"] = ["ing ", " the "]
        if i % 11 == 0:
            r["frequency_penalty"] = 0.5
        if i % 13 == 0:
            r["n"] = 2
        if i % 40 == 39:
            r["max_tokens"] = 100000  # refused: an answer like any other
        yield r


def start(where, out, *options):
    command = [GANTRY, "batch", str(MODEL), str(where / "in.jsonl"), "-o", str(where / out), "--concurrency", "8", "--", "--threads", "1",
               "--run-dir", str(where / f"run-{out}"), *options]
    environment = dict(os.environ, XDG_CACHE_HOME=str(where), TMPDIR=str(where), GANTRY_E2E=str(where))
    return runner.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
                            stdin=subprocess.DEVNULL)


def finish(process, code=0):
    try:
        said, _ = process.communicate(timeout=200 * runner.SLOW)
    except subprocess.TimeoutExpired:
        process.kill()
        raise Failed("a batch does not end") from None
    if process.returncode != code:
        raise Failed(f"exit code {process.returncode}, {code} expected:\n{said}")
    return said


def answered(where, out):
    part = where / f"{out}.part"
    return part.read_bytes().count(b"\n") if part.exists() else 0


def of_ours(where, words):
    """pids of processes of this test whose command line holds all of the words"""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes().split(b"\0")
            if entry.name.isdigit() and all(w.encode() in line for w in words) and str(where).encode() in b"\0".join(line):
                found.append(int(entry.name))
        except OSError:
            pass
    return found


def disturbed(where, out, kills, *options):
    for how in kills:
        seen = answered(where, out)
        process = start(where, out, *options)
        end = time.monotonic() + 120 * runner.SLOW
        while answered(where, out) < seen + 12 and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        if process.poll() is not None:
            raise Failed(f"ended too early: {process.communicate()[0]}")
        if how == "rank":
            ranks = of_ours(where, ["worker", "--replica"])
            os.kill(ranks[-1], signal.SIGKILL)
            finish(process)  # it goes on by itself
            return
        process.send_signal(how)
        said = finish(process, -9 if how == signal.SIGKILL else 9)
        if how != signal.SIGKILL and "the same command goes on from there" not in said:
            raise Failed(f"no word of how to go on: {said}")
        end = time.monotonic() + 30 * runner.SLOW
        while of_ours(where, ["serve"]) and time.monotonic() < end:
            time.sleep(0.05)  # a killed one's service ends by itself
        if of_ours(where, ["serve"]):
            raise Failed("the service of a killed batch lives on")
    with open(where / f"{out}.part", "ab") as part:
        part.write(b'{"id": "r0", "text": "tor')  # what a power cut may leave
    said = finish(start(where, out, *options))
    if "records are answered already" not in said:
        raise Failed(f"it began anew: {said}")


def check(where):
    (where / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records(random.Random(5))))
    finish(start(where, "whole.jsonl"))
    whole = (where / "whole.jsonl").read_bytes()
    answers = [json.loads(line) for line in whole.splitlines()]
    assert [a["id"] for a in answers] == [f"r{i}" for i in range(N)]
    assert sum("error" in a for a in answers) == 3 and all("max_tokens is 100000" in a["error"]["message"] for a in answers
                                                             if "error" in a)
    single = [(i, a) for i, a in enumerate(answers) if i % 13 and "error" not in a]
    assert all(len(a["logprobs"]) == a["completion_tokens"] for i, a in single if i % 5 == 0)
    assert all(len(a["choices"]) == 2 for i, a in enumerate(answers) if i % 13 == 0 and "error" not in a)
    disturbed(where, "tp2.jsonl", [signal.SIGKILL, signal.SIGTERM], "--tp", "2", "--prefix-cache", "off")
    assert (where / "tp2.jsonl").read_bytes() == whole, "tp 2, killed twice: other bytes"
    disturbed(where, "pp2.jsonl", ["rank"], "--pp", "2", "--replicas", "2", "--chunk", "7")
    assert (where / "pp2.jsonl").read_bytes() == whole, "two replicas of pp 2, a rank killed: other bytes"
    assert "has all of the 120 records" in finish(start(where, "whole.jsonl"))
    (where / "whole.jsonl").write_text("mine\n")
    finish(start(where, "whole.jsonl"), 5)
    assert (where / "whole.jsonl").read_text() == "mine\n"
    refused(where)


def refused(where):
    """Nothing is started for an input that is wrong."""
    for line, words in [('{"id": "a"}', 'line 2: either "prompt" or "prompt_ids" is wanted'), ("{", "line 2: not JSON"),
                        ('{"id": "ok", "prompt": "x"}', 'line 2: id "ok" was given before'),
                        ('{"prompt": "x", "max_token": 3}', '"max_token" is no field'),
                        ('{"prompt": "x", "top_k": -1}', '"top_k" is -1; a whole number')]:
        (where / "in.jsonl").write_text('{"id": "ok", "prompt": "x"}\n' + line + "\n")
        said = finish(start(where, "bad.jsonl"), 3)
        assert words in said, said
        assert not (where / "bad.jsonl.part").exists()
    (where / "in.jsonl").write_text('{"id": "ok", "prompt": "x"}\n')
    assert "listens on no port" in finish(start(where, "bad.jsonl", "--listen", "127.0.0.1:0"), 2)


with tempfile.TemporaryDirectory(prefix="gb-") as folder:
    try:
        check(pathlib.Path(folder))
    except Failed as failure:
        sys.exit(f"FAIL  {failure}")
    finally:
        runner.end_all()
    left = subprocess.run(["bash", str(SOURCE / "tests" / "common" / "no_leftovers.sh"), f"GANTRY_E2E={folder}"])
    sys.exit(left.returncode)
