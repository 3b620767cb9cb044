"""Faults in the commands that come to an end by themselves: `gantry batch`, and those that ask or look (plan, inspect, status, generate).

Such a command does what it is for, with the output of an undisturbed run and 0; or it ends with a code that means something and a
sentence. A batch that was ended so is started again and its file then has the same bytes. At its end it holds what an undisturbed one does.
"""
import json
import os
import pathlib
import subprocess
import tempfile

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
    """`gantry batch`, in a folder of its own each time."""

    def __init__(self, page, model, names):
        super().__init__(page, ["batch", str(model)], names)
        self.model = str(model)

    def result(self):
        with tempfile.TemporaryDirectory(prefix="gantry-fault-") as folder:
            where = pathlib.Path(folder)
            (where / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS))
            out = where / "out.jsonl"
            self.words = ["batch", self.model, str(where / "in.jsonl"), "--output", str(out), "--concurrency", "3", "--", "--threads",
                          "1", "--run-dir", str(where / "run")]
            marker = dict(XDG_CACHE_HOME=folder, TMPDIR=folder, GANTRY_CHAOS=folder)
            code, _, said = self.once(True, marker)
            pid = self.pid
            start.all_gone(f"GANTRY_CHAOS={folder}")
            if code == 0:
                return 0, out.read_text(), said
            again, _, words = self.once(False, marker)
            if again != 0 or out.read_text() != self.wanted:
                raise chaos.Failed(f"ended with {code}; started again: {again}, "
                                   f"{'other bytes' if out.exists() else 'no file'}:\n{said[-800:]}\n{words[-800:]}")
            left = [p.name for p in where.iterdir() if p.name not in ("in.jsonl", "out.jsonl", "run", "gantry")]
            if left:
                raise chaos.Failed(f"it leaves {left}")
            self.pid = pid
            return code, "", said
