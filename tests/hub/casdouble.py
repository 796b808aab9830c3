"""Minimal Xet CAS over HTTP (v1 API) for the Hub double; xorbs and shards kept as raw bytes."""

import hashlib
import json
import os
import re
import struct

from hubdouble import Handler, HTTPErr, Hub


def hx(b):  # MerkleHash <-> hex: four little-endian u64
    return "".join("%016x" % int.from_bytes(b[i : i + 8], "little") for i in range(0, 32, 8))


def parse_shard(d):
    """-> [(file_hash, [(xorb, nbytes, start, end)], sha256|None)]; upload shards have a 48-byte header"""
    pos, out = 48, []
    while True:
        h = d[pos : pos + 48]
        pos += 48
        if h[:32] == b"\xff" * 32:
            break
        flags, n = struct.unpack_from("<II", h, 32)
        segs = []
        for _ in range(n):
            e = d[pos : pos + 48]
            pos += 48
            _, nb, a, b = struct.unpack_from("<IIII", e, 32)
            segs.append((hx(e[:32]), nb, a, b))
        if flags & (1 << 31):
            pos += 48 * n
        sha = None
        if flags & (1 << 30):
            sha = hx(d[pos : pos + 32])
            pos += 48
        out.append((hx(h[:32]), segs, sha))
    return out


def chunk_offsets(x):
    """byte offset of every chunk in a serialized xorb (8-byte chunk headers), end offset last"""
    pos, offs = 0, [0]
    while pos + 8 <= len(x) and x[pos : pos + 7] != b"XETBLOB":
        clen = int.from_bytes(x[pos + 1 : pos + 4], "little")
        pos += 8 + clen
        offs.append(pos)
    return offs


class XetHub(Hub):
    def __init__(self, *a, **k):
        k.setdefault("xet", "http")
        super().__init__(*a, **k)
        if self.xet == "http":
            self.xet = "cas"
        self.xorbs, self.files, self.xet_of = {}, {}, {}

    def xet_import(self, sha):
        """materialise a file uploaded through Xet so that plain HTTP downloads work too (real hf_xet does the decoding)"""
        fh = self.xet_of.get(sha)
        if fh is None:
            return False
        import hf_xet

        size = sum(s[1] for s in self.files[fh])
        p = self.lfs_path(sha)
        g = hf_xet.XetSession().new_file_download_group(
            endpoint=self.endpoint + "/cas", token="xet_t", token_expiry_unix_secs=1 << 33
        )
        with g as group:
            group.start_download_file(hf_xet.XetFileInfo(fh, size), p + ".tmp")
        with open(p + ".tmp", "rb") as f:
            assert hashlib.sha256(f.read()).hexdigest() == sha
        os.replace(p + ".tmp", p)
        return True

    def start(self, port=0):
        super().start(port)
        cls = self.server.RequestHandlerClass
        base = cls.route

        def route(h, raw, path, q, data):
            if raw.startswith("/cas/"):
                return self.cas(h, raw[4:], data)
            return base(h, raw, path, q, data)

        cls.route = route
        return self

    def cas(self, h, p, data):
        m = h.command
        if not h.headers.get("Authorization", "").startswith("Bearer xet_") and not p.startswith("/xorb/"):
            raise HTTPErr(401, "no xet token")
        if m == "POST" and (t := re.fullmatch(r"/v1/xorbs/default/([0-9a-f]{64})", p)):
            new = t[1] not in self.xorbs
            self.xorbs[t[1]] = data
            return h.send(200, {"was_inserted": new})
        if m == "POST" and p == "/v1/shards":
            for fh, segs, sha in parse_shard(data):
                for s in segs:
                    if s[0] not in self.xorbs:
                        raise HTTPErr(400, f"unknown xorb {s[0]}")
                self.files[fh] = segs
                if sha:
                    self.xet_of[sha] = fh
            return h.send(200, {"result": 1})
        if m == "POST" and p == "/v1/telemetry":
            return h.send(200, {})
        if m == "GET" and (t := re.fullmatch(r"/v1/reconstructions/([0-9a-f]{64})", p)):
            segs = self.files.get(t[1])
            if segs is None:
                raise HTTPErr(404, "no such file")
            total = sum(s[1] for s in segs)
            a, b = 0, total
            if r := re.fullmatch(r"bytes=(\d+)-(\d*)", h.headers.get("Range", "")):
                a = int(r[1])
                b = min(total, int(r[2]) + 1 if r[2] else total)
                if a >= total:
                    return h.send(416, {})
            terms, span, pos, skip = [], {}, 0, None
            for x, nb, s, e in segs:  # whole segments only (coarse but valid)
                if pos + nb > a and pos < b:
                    if skip is None:
                        skip = a - pos
                    terms.append({"hash": x, "unpacked_length": nb, "range": {"start": s, "end": e}})
                    lo, hi = span.get(x, (s, e))
                    span[x] = (min(lo, s), max(hi, e))  # one covering range per xorb
                pos += nb
            fetch = {}
            for x, (s, e) in span.items():
                o = chunk_offsets(self.xorbs[x])
                fetch[x] = [
                    {
                        "range": {"start": s, "end": e},
                        "url": f"{self.endpoint}/cas/xorb/{x}",
                        "url_range": {"start": o[s], "end": o[e] - 1},
                    }
                ]
            return h.send(200, {"offset_into_first_range": skip or 0, "terms": terms, "fetch_info": fetch})
        if m == "GET" and (t := re.fullmatch(r"/xorb/([0-9a-f]{64})", p)):
            return h.ranged(self.xorbs[t[1]], {})
        raise HTTPErr(404, "not found")


if __name__ == "__main__":
    import argparse
    import tempfile
    import threading

    ap = argparse.ArgumentParser()
    ap.add_argument("--port", type=int, default=8099)
    a = ap.parse_args()
    hub = XetHub(tempfile.mkdtemp())
    hub.add_user("hf_write", "alice", ["acme"])
    hub.add_user("hf_read", "bob", role="read")
    hub.add_user("hf_other", "carol")
    hub.start(a.port)
    print(hub.endpoint, flush=True)
    try:
        threading.Event().wait()
    finally:
        pass
