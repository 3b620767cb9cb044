#!/usr/bin/env python3
"""Faults of hosts and links at random, by a seed, under streams that are compared token by token (tests/common/chaos.py).

    ./run bench chaos-hosts [--seed S] [--faults N] [--streams N] [--tp N] [--pp N] [--replicas R] [--spares N] [--log FILE]
                            [--journal]

Hosts are network namespaces (GANTRY_SHARED_DIR/hosts; needs root). The coordinator and the clients are on the first, which is left
alone; ranks are on the others, one each, over TCP. Kinds: a rank killed, mpirun killed, a rank stopped; all power of a host gone, a host
frozen, its cable cut (mended when the loss was named); and from time to time a link becomes slow or loses packets for a while,
which must cost nothing but time. Prints a line per fault, then the counts, times and pauses of ./run bench chaos.
"""
import argparse
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time

SOURCE = pathlib.Path(os.environ["GANTRY_SOURCE_DIR"])
HOSTS = pathlib.Path(os.environ.get("GANTRY_SHARED_DIR", "/nonexistent")) / "hosts"
sys.path.insert(0, str(SOURCE / "tests" / "common"))
import chaos  # noqa: E402

MODEL = SOURCE / "model" / "demo"
KINDS = ["rank"] * 3 + ["mpirun"] + ["stop"] * 2 + ["crash"] * 2 + ["cut"] * 3 + ["freeze"]


def tool(name, *words):
    done = subprocess.run([str(HOSTS / name), *map(str, words)], capture_output=True, text=True)
    if done.returncode != 0:
        raise chaos.Failed(f"{name} {words}: {done.stdout}{done.stderr}")


class HostFault(chaos.Fault):
    """What happens to a whole host is named by one of its ranks."""

    host = None

    def is_named(self, words):
        return f"(host {self.host}" in words if self.host else super().is_named(words)


def inject(service, kind, replica, rng):
    if kind in ("rank", "mpirun", "stop"):
        return chaos.inject(service, kind, replica, rng)
    status = service.status().replicas[replica]
    rank = rng.choice(status.ranks)
    fault = HostFault(kind, replica, status.generation, rank.rank, time.time())
    fault.host = rank.host
    tool("netns-fail", rank.host, kind)
    return fault


def mend(fault):
    host = getattr(fault, "host", None)
    if host:
        tool("netns-fail", host, "thaw" if fault.kind == "freeze" else "mend")


class Weather:
    """One link at a time that is slow or loses packets."""

    def __init__(self, hosts, rng):
        self.hosts, self.rng, self.host, self.n = hosts, rng, None, 0

    def change(self):
        self.clear()
        if self.rng.random() < 0.4:
            self.host, self.n = self.rng.choice(self.hosts), self.n + 1
            words = ["delay", self.rng.choice([0.5, 1, 3])] if self.rng.random() < 0.5 else ["loss", self.rng.choice([0.2, 1])]
            tool("netns-shape", self.host, *words)

    def clear(self):
        if self.host:
            tool("netns-shape", self.host, "off")
        self.host = None


def figures(words, values, unit="ms"):
    if values:
        print(f"{words:<44} n {len(values):5}  p50 {chaos.quantile(values, 0.5):7.0f}  p99 {chaos.quantile(values, 0.99):7.0f}  "
              f"max {max(values):7.0f} {unit}")


def has_work(service):
    status = service.status()
    return [r.replica for r in status.replicas if r.state == "serving" and (r.running > 0 or all(x.running == 0 for x in status.replicas))]


def inside(args):
    rng = random.Random(args.seed)
    prefix = os.environ["GX_PREFIX"]
    n_hosts = args.replicas * args.tp * args.pp + args.spares
    hosts = [f"{prefix}{i + 2}" for i in range(n_hosts)]
    named, begun = {}, time.monotonic()
    wanted = chaos.undisturbed(MODEL)
    with tempfile.NamedTemporaryFile("w", suffix=".hosts") as hostfile:
        hostfile.write("".join(f"{host} slots=1\n" for host in hosts))
        hostfile.flush()
        options = ["--replicas", str(args.replicas), "--tp", str(args.tp), "--pp", str(args.pp), "--threads", "1", "--hang-timeout",
                   str(args.hang_timeout), "--retries", "1000000", "--restarts", "1000000", "--hostfile", hostfile.name]
        with (chaos.DurableService if args.journal else chaos.Service)(MODEL, options) as service:
            weather = Weather(hosts, rng)
            try:
                n = run(args, rng, service, weather, wanted, named)
            finally:
                weather.clear()
            crowd = run.crowd
            service.wait_for(service.is_free, 20, "all KV blocks to be free")
            inner, outer = chaos.pauses(service, crowd)
            if args.log:
                pathlib.Path(args.log).write_text(service.log())
    print(f"\nseed {args.seed}, {args.replicas} replicas of tp {args.tp} x pp {args.pp} on {n_hosts} hosts ({args.spares} spare), "
          f"{args.streams} streams, {time.monotonic() - begun:.0f} s: {n} faults ("
          + ", ".join(f"{len(v)} {k}" for k, v in sorted(named.items())) + f"), {weather.n} bad links, {crowd.n_answers} answers, "
          f"{crowd.n_tokens} tokens, 0 differ, 0 failed")
    for kind, values in sorted(named.items()):
        figures(f"{kind} -> named log line", values)
    figures("pause of a stream, from the loss noticed", inner)
    figures("pause of a stream, at its client", outer)


def run(args, rng, service, weather, wanted, named):
    bounds = {"rank": args.bound, "mpirun": args.bound}
    n = 0
    with chaos.Crowd(service, wanted, args.streams) as crowd:
        run.crowd = crowd
        while n < args.faults and not crowd.differing and not crowd.failed:
            service.wait_for(lambda: has_work(service), 120, "a replica to work")
            time.sleep(rng.uniform(0, 0.5))
            busy = has_work(service)
            if not busy:
                continue
            weather.change()
            fault = inject(service, rng.choice(KINDS), rng.choice(busy), rng)
            try:
                took = chaos.await_named(service, fault, bounds.get(fault.kind, args.hang_timeout + args.bound))
            finally:
                mend(fault)
            named.setdefault(fault.kind, []).append(took * 1000)
            n += 1
            print(f"{n:5} {fault}{' host ' + fault.host if getattr(fault, 'host', None) else ''}: named after {took * 1000:.0f} ms; "
                  f"{crowd.n_answers} answers" + (f"; {weather.host} is slow" if weather.host else ""), flush=True)
    crowd.check()
    return n


def outside(args):
    """Makes the hosts and runs this script again on the first of them."""
    if os.geteuid() != 0 or not (HOSTS / "netns-up").exists():
        sys.exit(f"chaos-hosts needs root and {HOSTS}")
    with tempfile.TemporaryDirectory(prefix="gantry-ch-") as folder:
        os.environ.update(GX_PREFIX="gc", GX_NET="10.81.0", GX_STATE=folder + "/gx", GANTRY_CHAOS_INSIDE="1")
        try:
            tool("netns-up", args.replicas * args.tp * args.pp + args.spares + 1)
            for name, value in re.findall(r"(\w+)='?([^'\s]*)'?", (pathlib.Path(folder) / "gx" / "mpi.env").read_text()):
                os.environ[name] = value
            return subprocess.run([str(HOSTS / "netns-rsh"), "-E", "gc1", sys.executable, *sys.argv]).returncode
        finally:
            subprocess.run([str(HOSTS / "netns-down")], stdout=subprocess.DEVNULL)


def main():
    parser = argparse.ArgumentParser(description="Faults of hosts and links under streams that must not notice.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--pp", type=int, default=2)
    parser.add_argument("--spares", type=int, default=1)
    parser.add_argument("--hang-timeout", type=int, default=3)
    parser.add_argument("--bound", type=float, default=3, help="seconds until a fault must be named, beyond the hang timeout where it is silent")
    parser.add_argument("--journal", action="store_true", help="ranks that are cut off wait for a coordinator (--orphan-grace), clients resume")
    parser.add_argument("--log", help="keep the service's log there")
    args = parser.parse_args()
    if "GANTRY_CHAOS_INSIDE" not in os.environ:
        sys.exit(outside(args))
    inside(args)


try:
    main()
except chaos.Failed as failure:
    sys.exit(f"FAIL  {failure}")
