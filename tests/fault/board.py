"""The driver's side of board.h: the sites that were called, the one that fails next, the blocks that are held."""
import ctypes
import errno
import mmap
import os
import pathlib
import re
import struct
import subprocess

FRAMES, N_SITES, LIVE_SLOTS = 6, 1 << 13, 1 << 18
SHORT = 10001
HEAD = struct.Struct("<4Q")  # hits, pid, n_lost, padding
SITE = struct.Struct(f"<QQQqqqQ24s24s{FRAMES}I")
SIZE = HEAD.size + N_SITES * SITE.size
EAI_AGAIN, EAI_MEMORY = -3, -10


class Site:
    """One wrapped function over one chain of callers."""

    def __init__(self, place, fields):
        self.place = place
        self.id, self.calls, self.hits, _, _, _, _, call, library, *frames = fields
        self.call, self.library = call.rstrip(b"\0").decode(), library.rstrip(b"\0").decode()
        self.frames = tuple(f for f in frames if f)

    @property
    def is_ours(self):
        return not self.library


class Board:
    """The page that the process under test maps (GANTRY_FAULT_FILE)."""

    def __init__(self, folder):
        self.path = pathlib.Path(folder) / "board"
        self.path.write_bytes(bytes(SIZE))
        with open(self.path, "r+b") as file:
            self.map = mmap.mmap(file.fileno(), SIZE)

    def clear(self):
        """No counts and nothing armed; the sites that are known stay where they are."""
        for site in self.sites().values():
            struct.pack_into("<QQqqq", self.map, site.place + 8, 0, 0, 0, 0, 0)
        struct.pack_into("<QQ", self.map, 0, 0, 0)
        for old in self.path.parent.glob("board.*"):
            old.unlink()

    def hits(self):
        return HEAD.unpack_from(self.map, 0)[0]

    def hit_pid(self):
        return HEAD.unpack_from(self.map, 0)[1]

    def arm(self, site, error, n, again=0):
        """The n-th call of `site` from now fails, and `again` more behind it."""
        struct.pack_into("<qqq", self.map, site.place + 24, 0, again, error)
        struct.pack_into("<q", self.map, site.place + 24, n)

    def disarm(self, site):
        struct.pack_into("<qq", self.map, site.place + 24, 0, 0)

    def sites(self):
        """{id: Site}"""
        assert HEAD.unpack_from(self.map, 0)[2] == 0, "more sites than board.h has room for"
        found = {}
        for i in range(N_SITES):
            place = HEAD.size + i * SITE.size
            if self.map[place:place + 8] != bytes(8):
                fields = SITE.unpack_from(self.map, place)
                if fields[6]:
                    found[fields[0]] = Site(place, fields)
        return found

    def held(self, pid):
        """{site id: (blocks, bytes)} that process `pid` holds, or held when it ended."""
        data = pathlib.Path(f"{self.path}.{pid}").read_bytes()
        n, n_lost = struct.unpack_from("<QQ", data, 0)
        assert n_lost == 0, "more blocks than live.c has room for"
        held = {}
        if n:
            for at, size, site in struct.iter_unpack("<QQQ", data[16:]):
                if at:
                    blocks, total = held.get(site, (0, 0))
                    held[site] = blocks + 1, total + size
        return held

    def pids(self):
        return [int(path.suffix[1:]) for path in self.path.parent.glob("board.*")]


class Names:
    """Return addresses of the program as function:line, by addr2line."""

    def __init__(self, program):
        self.program, self.known = program, {}

    def learn(self, sites):
        new = sorted({f for s in sites if s.is_ours for f in s.frames} - set(self.known))
        for at in range(0, len(new), 500):
            part = new[at:at + 500]
            out = subprocess.run(["addr2line", "-f", "-e", self.program, *(hex(f - 1) for f in part)],  # the call, not what follows it
                                 capture_output=True, text=True, check=True).stdout.splitlines()
            for frame, function, line in zip(part, out[::2], out[1::2]):
                found = re.search(r"([^/]+:\d+)", line)
                self.known[frame] = f"{function}({found[1] if found else '?'})"

    def of(self, site, depth=FRAMES):
        if not site.is_ours:
            return f"{site.call} of {site.library}+{site.frames[0]:#x}"
        self.learn([site])
        return f"{site.call} < " + " < ".join(self.known[f] for f in site.frames[:depth])


def code(error):
    """ "ENOMEM" or "short" as board.h wants it."""
    if error == "short":
        return SHORT
    return {"EAI_AGAIN": EAI_AGAIN, "EAI_MEMORY": EAI_MEMORY}.get(error) or getattr(errno, error)
