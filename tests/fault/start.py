"""Faults at the start: `gantry serve` is started over and over, and of each start one call fails (those that nobody may notice: all
of them in one start, and one by one where that fails).

The service then serves all the same, with the same answer, and ends with 0; or it ends by itself with a code that means something
(not a signal, not 70) and a sentence. Either way it holds no more blocks at its end than after an undisturbed life, and leaves no process.
"""
import os
import pathlib
import re
import subprocess
import time

import chaos
import points

ANY = object()  # an answer that is not compared
GOOD_CODES = {2, 3, 4, 5, 6, 7, 8}
REQUEST = dict(prompt="The whale", temperature=0.9, seed=1, max_tokens=24, ignore_eos=True, logprobs=2)


def environment(page, role):
    """What a program of this test is started with."""
    return dict(LD_PRELOAD=os.environ["GANTRY_FAULT_LIBRARY"], GANTRY_FAULT_FILE=str(page.path), GANTRY_FAULT_ROLE=role)


class armed:
    """Programs started within are those meant."""

    def __init__(self, page, role):
        self.set = environment(page, role)

    def __enter__(self):
        os.environ.update(self.set)

    def __exit__(self, *_):
        for name in self.set:
            os.environ.pop(name, None)


def of_ours(marker):
    """{pid: command line} of the processes that carry it in their environment."""
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                folder = pathlib.Path(entry.path)
                name = (folder / "comm").read_text().strip()
                if name in ("gantry", "mpirun", "orted", "prted", "prterun") and marker.encode() in (folder / "environ").read_bytes():
                    if "\nState:\tZ" not in (folder / "status").read_text():
                        found[int(entry.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:150]
            except OSError:
                pass
    return found


def all_gone(marker, seconds=60):
    """Waits; what is left then is named and ended."""
    end = time.monotonic() + seconds
    while True:
        left = of_ours(marker)
        if not left:
            return
        if time.monotonic() > end:
            for pid in left:
                try:
                    os.kill(pid, 9)
                except OSError:
                    pass
            raise chaos.Failed(f"processes are left behind: {left}")
        time.sleep(0.05)


class Ended(Exception):
    """By itself: code and words."""


class Service(chaos.Service):
    """A service whose start may end with a word; what it leaves is looked for here, in one pass over /proc."""

    def __init__(self, model, options):
        super().__init__(model, options)
        self.command = [word.replace("DIR", self.dir.name) for word in self.command]

    def status(self):
        """A fault may cost one question; not two."""
        try:
            return super().status()
        except chaos.Failed:
            return super().status()

    def __exit__(self, *failure):
        if self.process.poll() is None and failure[0] is not None:
            try:
                self.process.wait(timeout=10)  # it may be about to end
            except subprocess.TimeoutExpired:
                pass
        self.ended = self.process.poll()
        if self.ended is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=120)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.said = self.log()
        launcher = self.run_dir / "mpirun.log"
        self.launcher_said = launcher.read_text(errors="replace") if launcher.exists() else ""
        try:
            all_gone(f"GANTRY_CHAOS={self.dir.name}")
        finally:
            self.dir.cleanup()
        if self.ended is not None:
            raise Ended(self.ended, self.said) from None
        if failure[0] is None and self.process.returncode != 0:
            raise chaos.Failed(f"serve ended with {self.process.returncode}:\n{self.said[-3000:]}")

    def pid(self, role):
        if role == "serve":
            return self.process.pid
        return self.status().replicas[0].ranks[int(role.removeprefix("rank")) if role != "leader" else 0].pid


def ask(service, request=REQUEST, request_id=""):
    return chaos.ask(chaos.gantry_pb2_grpc.GenerationStub(service.channel), request, request_id)


def ask_twice(service):
    """The fault may come as late as the first request, which is then told so."""
    try:
        return ask(service)
    except chaos.grpc.RpcError as error:
        if error.code() not in (chaos.grpc.StatusCode.RESOURCE_EXHAUSTED, chaos.grpc.StatusCode.UNAVAILABLE):
            raise chaos.Failed(f"{error.code()}: {error.details()}") from error
    service.wait_for(lambda: service.status().state == "serving", 60, "the service to be whole again")
    return ask(service)


def judge_end(code, said, command="serve"):
    """The last sentence of a program that has ended by itself, or Failed."""
    sentences = [line for line in said.splitlines() if line.startswith(f"gantry {command}: ")]
    if code not in GOOD_CODES or not sentences:
        raise chaos.Failed(f"it ended with {code}:\n{said[-3000:]}")
    return sentences[-1]


class Ends:
    """A program that is run over and over, for one role, with points that fail; what of it ends is judged."""

    def __init__(self, page, role, names):
        self.page, self.role, self.names = page, role, names
        self.held, self.pid = {}, None  # pid: of the process that lived to an orderly end

    def called(self):
        """The sites of the run that was."""
        sites = {i: s for i, s in self.page.sites().items() if s.calls}
        if not sites:
            raise chaos.Failed(f"{self.role}: no call was counted: is {os.environ['GANTRY_FAULT_LIBRARY']} loaded?")
        return sites

    def keep_held(self):
        for pid in self.page.pids():
            for key, (blocks, size, _) in self.held_by(pid).items():
                self.held[key] = max(blocks, self.held.get(key, 0))

    def held_by(self, pid):
        """{the line that asked for it: (blocks, bytes, a site)}: not the chain, for who comes first to what is made once may differ."""
        found, sites = {}, self.page.sites()
        for i, (blocks, size) in self.page.held(pid).items():
            key = sites[i].call, sites[i].frames[0]
            old = found.get(key, (0, 0, None))
            found[key] = old[0] + blocks, old[1] + size, sites[i]
        return found

    def leaks(self):
        """What the process that was hit holds at its end and an undisturbed one does not. A rank that fails ends its whole MPI
        job at once (cluster/coll.h, abort), without an order that could be asked for."""
        if self.page.hit_pid() != self.pid:
            return []
        return [f"{blocks} blocks, {size} bytes, as of {self.names.of(site)}"
                for key, (blocks, size, site) in self.held_by(self.pid).items() if blocks > self.held.get(key, 0)]

    def judge(self, group):
        """How it went; Failed if that is a crash, a leak, another answer or no sentence."""
        how, words = self.run(group)
        if not self.page.hits():
            return "not reached", ""
        if how == "aborts" and all(p.site.is_ours for p in group):
            raise chaos.Failed("a process ended by a signal")
        if how == "ends" and all(p.is_invisible for p in group):
            raise chaos.Failed(f"nobody should have noticed: {words}")
        if how == "ends" and not self.role.startswith(("leader", "rank")) and all(p.site.call in points.ALLOCATIONS for p in group) and not re.search(
                "memory|thread.*temporarily unavailable", words):
            raise chaos.Failed(f"its sentence names another cause: {words}")
        leaks = self.leaks() if all(p.site.is_ours for p in group) else []
        if leaks:
            raise chaos.Failed("at its end it held " + "; ".join(leaks[:6]))
        return how, words


class Starts(Ends):
    """One way to start a service."""

    def __init__(self, page, role, model, options, wanted, names):
        super().__init__(page, role, names)
        self.model, self.options, self.wanted = model, options, wanted

    def run(self, points):
        """(how it went, last words) of a start where these points fail."""
        service = Service(self.model, self.options)
        self.page.clear()
        self.pid = None
        for point in points:
            point.arm(self.page)
        try:
            with armed(self.page, self.role):
                with service:
                    if ask_twice(service) != self.wanted and self.wanted is not ANY:
                        raise chaos.Failed("another answer after a fault at the start")
                    self.pid = service.pid(self.role)
            result = "serves", ""
        except Ended as ended:
            if ended.args[0] < 0 and any(not p.site.is_ours for p in points):
                return "dies", f"by signal {-ended.args[0]}; all of its ranks have ended"
            result = "ends", judge_end(*ended.args)
            self.pid = service.process.pid if self.role == "serve" else None
        if self.role != "serve" and re.search(r" error +rank ", service.launcher_said):
            self.pid = None  # it did not come to an orderly end after all
        if self.page.hits() and re.search(r"on signal (4|6|7|8|11) ", service.launcher_said + service.said):
            result = "aborts", result[1]
        return result

    def record(self):
        """The sites of an undisturbed start and end, and what is held after it."""
        how, words = self.run([])
        if how != "serves":
            raise chaos.Failed(f"an undisturbed start ends: {words}")
        self.keep_held()
        return self.called()
