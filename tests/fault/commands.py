"""Faults in the commands that come to an end by themselves: `gantry batch`, and those that ask or look (plan, inspect, status, generate).

Such a command does what it is for, with the output of an undisturbed run and 0; or it ends with a code that means something and a
sentence. A batch that was ended so is started again and its file then has the same bytes. At its end it holds what an undisturbed one does.
"""
import json
import os
import pathlib
import subprocess
import tempfile
import time

import chaos
import start

RECORDS = [dict(id="a", prompt="The whale", max_tokens=20, logprobs=2), dict(id="b", prompt="He said", n=2, max_tokens=9, stop=[" the "]),
           dict(id="c", prompt="Once", temperature=0, max_tokens=12, frequency_penalty=0.5), dict(id="d", prompt="x", max_tokens=100000),
           dict(prompt_ids=[1, 2, 3], max_tokens=5)]


class Command(start.Ends):
    """One that is run over and over, for one role: its own name."""

    seconds = 120

    def __init__(self, page, words, names, same=True):
        super().__init__(page, words[0], names)
        self.words, self.same = words, same

    def once(self, is_armed, environment=None):
        """(code, stdout, stderr)"""
        env = dict(os.environ, **(environment or {}), **(start.environment(self.page, self.role) if is_armed else {}))
        process = subprocess.Popen([chaos.GANTRY, *self.words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                                   env=env, text=True, errors="replace")
        try:
            out, err = process.communicate(timeout=self.seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise chaos.Failed(f"it does not end within {self.seconds} s") from None
        self.pid = process.pid
        return process.returncode, out, err

    def result(self):
        """(code, what is compared, what it says) of an armed run."""
        return self.once(True)

    def record(self):
        self.page.clear()
        code, self.wanted, said = self.result()
        if code != 0:
            raise chaos.Failed(f"undisturbed {self.words}: {code}: {said}")
        self.keep_held()
        return self.called()

    def run(self, group):
        self.page.clear()
        for point in group:
            point.arm(self.page)
        code, got, said = self.result()
        if code == 0:
            if self.same and got != self.wanted:
                raise chaos.Failed(f"code 0, but another output:\n{got[-500:]}\nfor\n{self.wanted[-500:]}\n{said[-500:]}")
            return "does it", ""
        if self.role == "inspect":  # it prints what it finds, and whether that is well
            said = "".join(f"gantry inspect: {line}\n" for line in got.splitlines()) + said
        words = start.judge_end(code, said, self.role)
        return "ends", words


class Batch(Command):
    """`gantry batch`, in a folder of its own each time; `is_second`: where a killed one has left its answers."""

    def __init__(self, page, model, names, is_second=False):
        super().__init__(page, ["batch", str(model)], names)
        self.model, self.part, self.wanted = str(model), None, None
        self.is_second = is_second

    def place(self, where):
        """Its input and words; what it is started with."""
        (where / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS))
        if self.part is not None:
            (where / "out.jsonl.part").write_bytes(self.part)
        self.words = ["batch", self.model, str(where / "in.jsonl"), "--output", str(where / "out.jsonl"), "--concurrency", "1", "--",
                      "--threads", "1", "--run-dir", str(where / "run")]
        return dict(XDG_CACHE_HOME=str(where), TMPDIR=str(where), GANTRY_CHAOS=str(where))

    def record(self):
        if self.is_second:
            self.part = self.killed()
        return super().record()

    def killed(self):
        """The PART of one that was killed after two answers."""
        with tempfile.TemporaryDirectory(prefix="gantry-fault-") as folder:
            where = pathlib.Path(folder)
            env, part = dict(os.environ, **self.place(where)), where / "out.jsonl.part"
            process = subprocess.Popen([chaos.GANTRY, *self.words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
            end = time.monotonic() + self.seconds
            while not part.exists() or part.read_bytes().count(b"\n") < 3:
                if process.poll() is not None or time.monotonic() > end:
                    raise chaos.Failed("a batch that should have been killed has ended, or gives no answers")
                time.sleep(0.002)
            process.kill()
            process.wait()
            start.all_gone(f"GANTRY_CHAOS={folder}")
            return b"".join(part.read_bytes().splitlines(keepends=True)[:3])

    def result(self):
        with tempfile.TemporaryDirectory(prefix="gantry-fault-") as folder:
            where = pathlib.Path(folder)
            marker, out = self.place(where), where / "out.jsonl"
            code, told, said = self.once(True, marker)
            pid = self.pid
            start.all_gone(f"GANTRY_CHAOS={folder}")
            if self.is_second and code == 0 and "records are answered already" not in told:
                raise chaos.Failed(f"it began anew: {told}")
            if code == 0:
                return 0, out.read_text(), said
            if self.is_second and not (where / "out.jsonl.part").read_bytes().startswith(self.part):
                raise chaos.Failed(f"answers that were there are gone: {said}")
            again, _, words = self.once(False, marker)
            start.all_gone(f"GANTRY_CHAOS={folder}")
            if again != 0 or out.read_text() != self.wanted:
                raise chaos.Failed(f"ended with {code}; started again: {again}, "
                                   f"{'other bytes' if out.exists() else 'no file'}:\n{said[-800:]}\n{words[-800:]}")
            left = [p.name for p in where.iterdir() if p.name not in ("in.jsonl", "out.jsonl", "run", "gantry")]
            if left:
                raise chaos.Failed(f"it leaves {left}")
            self.pid = pid
            return code, "", said
