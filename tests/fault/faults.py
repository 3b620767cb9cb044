#!/usr/bin/env python3
"""Every place where the coordinator or the leader can be refused memory or a system call: once it is, and what then?

  faults.py [--what starts,steady,...] [--roles serve,leader] [--points N] [--seed S] [--done FILE]

A recorded run lists the call sites (board.h); then each fails in turn, with each error that its call may give, at its first call and at a
later one. --points N takes N of them by the seed (the test run's way), 0 all of them. Findings are collected, printed, and make
the exit code 1. --done FILE goes on where another run with that file (and the same program) has stopped.
"""
import argparse
import os
import pathlib
import random
import re
import sys
import tempfile
import time

SOURCE = pathlib.Path(os.environ["GANTRY_SOURCE_DIR"])
sys.path.insert(0, str(SOURCE / "tests" / "common"))
sys.path.insert(0, str(pathlib.Path(__file__).parent))
try:
    import chaos
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)
import board  # noqa: E402
import commands  # noqa: E402
import points  # noqa: E402
import start  # noqa: E402
import steady as fault_steady  # noqa: E402
import takeover  # noqa: E402

MODEL = SOURCE / "model" / "demo"
BASE = ["--threads", "1", "--retries", "100", "--restarts", "3", "--hang-timeout", "20"]


class Tally:
    """What became of the points, and the findings."""

    def __init__(self, args, names):
        self.args, self.names, self.findings = args, names, []
        self.done = set()
        if args.done and pathlib.Path(args.done).exists():
            self.done = {line.split("\t")[0] for line in pathlib.Path(args.done).read_text().splitlines()}

    def sweep(self, title, todo, run):
        """run(point) -> (outcome, words), or Failed."""
        self.count, began = {}, time.monotonic()
        n = 0
        for point in todo:
            key = f"{title} {point.site.id:016x} {point.error} {point.n}"
            if key in self.done:
                continue
            n += 1
            try:
                outcome, words = run(point)
            except chaos.Failed as failure:
                outcome, words = "FAILS", str(failure)
                self.findings.append(f"{title}: {point.words(self.names)}: {failure}")
                print(f"FAIL  {self.findings[-1]}", flush=True)
            self.count[outcome] = self.count.get(outcome, 0) + 1
            if self.args.verbose:
                print(f"    {outcome}: {point.words(self.names)}: {words.splitlines()[-1] if words else ''}", flush=True)
            if self.args.done:
                with open(self.args.done, "a") as file:
                    print(key, outcome, point.words(self.names), words.splitlines()[-1:] or "", sep="\t", file=file)
        print(f"  {title}: {n} points, " + ", ".join(f"{k} {v}" for k, v in sorted(self.count.items())) +
              f" ({time.monotonic() - began:.0f} s)", flush=True)


def chosen(tally, todo, n, rng):
    """n of them, or all, in an order by the seed: a sweep that is broken off has seen something of everything."""
    if tally.args.match:
        todo = [p for p in todo if re.search(tally.args.match, p.words(tally.names))]
    return rng.sample(todo, min(n or len(todo), len(todo)))


def over_ends(tally, what, title, args, rng, n_points, but=()):
    """The sweep of something that is run anew for each point."""
    sites = {i: site for i, site in what.record().items() if i not in but}
    ours = [site for site in sites.values() if site.is_ours]
    print(f"  {title}: {len(ours)} sites of ours, {len(sites) - len(ours)} of other libraries", flush=True)
    todo = points.plan(sites.values(), rng, args.foreign)
    if args.foreign is None and not n_points and not args.match:
        hidden = [p for p in todo if p.is_invisible and p.n == 1]
        todo = sum((together(what, f"{title}, {e}", [p for p in hidden if p.error == e]) for e in sorted(points.INVISIBLE)), []) + [
            p for p in todo if not p.is_invisible]
    tally.sweep(title, chosen(tally, todo, n_points, rng), lambda p: what.judge([p]))


def starts(tally, page, args, rng, wanted):
    for role in args.roles.split(","):
        options = BASE + (["--tp", "2"] if role != "serve" else []) + ["--journal", "DIR/journal"]
        over_ends(tally, start.Starts(page, role, MODEL, options, wanted, tally.names), f"{role}, start", args, rng, args.points)


def takeovers(tally, page, args, rng, _):
    """Only what an ordinary start does not come by."""
    what = takeover.Takeovers(page, MODEL, BASE, tally.names)
    usual = set(start.Starts(page, "serve", MODEL, BASE + ["--journal", "DIR/journal"], start.ANY, tally.names).record())
    over_ends(tally, what, "takeover", args, rng, args.points, usual)


def batch(tally, page, args, rng, _):
    over_ends(tally, commands.Batch(page, MODEL, tally.names), "batch", args, rng, args.points)


def batches(tally, page, args, rng, _):
    """Only what a first start does not come by."""
    usual = set(commands.Batch(page, MODEL, tally.names).record())
    over_ends(tally, commands.Batch(page, MODEL, tally.names, is_second=True), "batch again", args, rng, args.points, usual)


def asking(tally, page, args, rng, _):
    """Commands that look, and those that ask a service that nothing disturbs."""
    with start.Service(MODEL, BASE) as service:
        where = ["--connect", service.target]
        for words, same in ((["plan", str(MODEL), "--tp", "2"], False), (["inspect", str(MODEL)], True), (["status", *where], False),
                            (["generate", "The whale", "--seed", "1", "--max-tokens", "12", *where], True)):
            over_ends(tally, commands.Command(page, words, tally.names, same), words[0], args, rng, args.points)


def together(s, title, group):
    """Those that nobody may notice, all in one run; where that fails, by halves. The ones to be asked again alone."""
    if not group:
        return []
    try:
        how, words = s.judge(group)
        print(f"  {title}: {len(group)} sites in one run: {how}", flush=True)
        return []
    except chaos.Failed as failure:
        print(f"  {title}: {len(group)} sites in one run, by halves now: {str(failure).splitlines()[-1]}", flush=True)
    half = len(group) // 2
    return group if half == 0 else together(s, title, group[:half]) + together(s, title, group[half:])


def steady(tally, page, args, rng, _):
    for role in args.roles.split(","):
        title = f"{role}, serving"
        with start_steady(page, role, tally) as s:
            found = s.record()
            sites = page.sites()
            mine = [sites[i] for i in found if points.is_wanted(sites[i], args.foreign)]
            counts = {phase: sum(found[site.id][0] == phase for site in mine) for phase in ("stream", "drain", "kill")}
            print(f"  {title}: {len(mine)} sites; " + ", ".join(f"{n} by {phase}" for phase, n in counts.items()), flush=True)
            todo = []
            for site in mine:
                site.calls = found[site.id][1]
                todo += points.plan([site], rng, args.foreign)
            todo = chosen(tally, todo, args.steady, rng)
            todo.sort(key=lambda p: ("stream", "drain", "kill").index(found[p.site.id][0]))
            tally.sweep(title, todo, lambda p: s.judge(p, found[p.site.id][0]))


def start_steady(page, role, tally):
    return fault_steady.Steady(page, role, MODEL, ["--threads", "1", "--retries", "1000", "--restarts", "1000", "--hang-timeout", "20"], tally.names)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--what", default="starts,takeovers,steady,batch,batches,asking")
    parser.add_argument("--roles", default="serve,leader")
    parser.add_argument("--points", type=int, default=1)
    parser.add_argument("--steady", type=int, default=5)
    parser.add_argument("--foreign", choices=["calls", "allocations"])
    parser.add_argument("--seed", type=int, default=int(os.environ.get("GANTRY_SEED", "1")))
    parser.add_argument("--match", help="only points whose words (error, call, chain) hold this regular expression")
    parser.add_argument("--done")
    parser.add_argument("--verbose", action="store_true", default=bool(os.environ.get("GANTRY_VERBOSE")))
    args = parser.parse_args()
    tally = Tally(args, board.Names(os.environ["GANTRY"]))
    with start.Service(MODEL, BASE) as service:
        wanted = start.ask(service)
    kinds = dict(starts=starts, takeovers=takeovers, steady=steady, batch=batch, batches=batches, asking=asking)
    with tempfile.TemporaryDirectory(prefix="gantry-fault-") as folder:
        page = board.Board(folder)
        for what in args.what.split(","):
            kinds[what](tally, page, args, random.Random(args.seed), wanted)
    if tally.findings:
        sys.exit(f"FAIL  {len(tally.findings)} findings")


try:
    main()
except chaos.Failed as failure:
    sys.exit(f"FAIL  {failure}")
