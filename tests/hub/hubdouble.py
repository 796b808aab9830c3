"""Hugging Face Hub test double: stdlib only, real HTTP/1.1 over loopback, in-memory git-like repos, fault injection."""

import base64
import datetime
import fnmatch
import hashlib
import json
import os
import re
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/"}
LFS_EXT = (
    "*.safetensors",
    "*.bin",
    "*.parquet",
    "*.png",
    "*.jpg",
    "*.npz",
    "*.pt",
    "*.ckpt",
    "*.zip",
    "*.h5",
    "*.arrow",
)


def sha1(b):
    return hashlib.sha1(b).hexdigest()


def blob_oid(b):
    return sha1(b"blob %d\0" % len(b) + b)


def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")


@dataclass
class Blob:
    size: int
    oid: str  # git blob sha1
    data: bytes | None = None  # regular file
    sha256: str | None = None  # lfs file
    xet: str | None = None


@dataclass
class Commit:
    sha: str
    parent: str | None
    files: dict
    title: str
    message: str
    date: str


@dataclass
class Repo:
    type: str
    id: str
    private: bool = False
    gated: bool = False
    sdk: str | None = None
    created: str = field(default_factory=now)
    commits: dict = field(default_factory=dict)
    branches: dict = field(default_factory=dict)
    tags: dict = field(default_factory=dict)
    prs: list = field(default_factory=list)
    secrets: dict = field(default_factory=dict)
    variables: dict = field(default_factory=dict)

    def add_commit(self, parent, files, title, message=""):
        date = now()
        sha = sha1(json.dumps([parent, sorted((p, b.oid) for p, b in files.items()), title, time.time_ns()]).encode())
        self.commits[sha] = Commit(sha, parent, files, title, message, date)
        return sha

    def resolve(self, rev):
        if rev.startswith("refs/heads/"):
            rev = rev[11:]
        for table in (self.branches, self.tags):
            if rev in table:
                return self.commits[table[rev]]
        if re.fullmatch(r"[0-9a-f]{7,40}", rev):
            for s, c in self.commits.items():
                if s.startswith(rev):
                    return c
        return None


@dataclass
class Fault:
    """Applies to the first `times` requests matching method+path regex, after skipping `skip`."""

    method: str
    path: str
    times: int = 1
    skip: int = 0
    status: int | None = None  # answer this status (after reading the request body)
    headers: dict = field(default_factory=dict)
    message: str = "injected"  # of that answer
    drop_after: int | None = None  # read this many request-body bytes, then RST the connection
    truncate_after: int | None = None  # send this many response-body bytes, then cut the connection
    fin: bool = False  # cut with FIN (clean close) instead of RST
    delay: float = 0.0
    rate: float | None = None  # bytes a second at which the request's body is read
    lose_response: bool = False  # do the work, then RST instead of answering
    raw: bytes | None = None  # bytes to answer instead, head and all
    more: bytes = b""  # again and again after them, until the client has gone
    pause: float = 0.0  # seconds between
    hits: int = 0


class HTTPErr(Exception):
    def __init__(self, status, msg, code=None):
        self.status, self.msg, self.code = status, msg, code


class Drop(Exception):
    pass


class Hub:
    def __init__(
        self,
        root,
        *,
        xet="off",
        multipart_threshold=None,
        part_size=5 * 1024 * 1024,
        cdn=True,
        inline_max=10 * 1024 * 1024,
    ):
        self.root = str(root)
        os.makedirs(os.path.join(self.root, "lfs"), exist_ok=True)
        self.repos, self.lock, self.flock, self.log, self.faults = {}, threading.RLock(), threading.Lock(), [], []
        self.users = {}  # token -> {"name","orgs","role"}
        self.xet, self.multipart_threshold, self.part_size, self.cdn = xet, multipart_threshold, part_size, cdn
        self.inline_max = inline_max
        self.sigs, self.parts = {}, {}
        self.server = None

    # ---- lifecycle
    def start(self, port=0):
        hub = self

        class H(Handler):
            pass

        H.hub = hub
        self.server = Server(("127.0.0.1", port), H)
        self.port = self.server.server_port
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.cdn_base = f"http://localhost:{self.port}/cdn"  # other origin => client must drop the auth header
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def __enter__(self):
        return self.start()

    def __exit__(self, *a):
        self.stop()

    def add_user(self, token, name, orgs=(), role="write"):
        self.users[token] = {"name": name, "orgs": list(orgs), "role": role}

    def fault(self, *a, **k):
        f = Fault(*a, **k)
        self.faults.append(f)
        return f

    def lfs_path(self, sha):
        return os.path.join(self.root, "lfs", sha)

    def has_lfs(self, sha, size=None):
        p = self.lfs_path(sha)
        if os.path.exists(p):
            return True
        return self.xet_import(sha) if self.xet != "off" else False

    def xet_import(self, sha):
        return False

    def put_lfs(self, sha, data):
        if hashlib.sha256(data).hexdigest() != sha:
            raise HTTPErr(400, "sha256 mismatch")
        with open(self.lfs_path(sha), "wb") as f:
            f.write(data)

    # ---- authorisation
    def user(self, h, need=None):
        auth = h.headers.get("Authorization", "")
        tok = auth[7:] if auth.startswith("Bearer ") else None
        if tok is None:
            if need:
                raise HTTPErr(401, "Invalid username or password.")
            return None
        u = self.users.get(tok)
        if u is None:
            raise HTTPErr(401, "Invalid credentials in Authorization header")
        return u

    def can_write(self, u, ns):
        return u and u["role"] == "write" and (ns == u["name"] or ns in u["orgs"])

    def repo(self, h, typ, rid, write=False):
        u = self.user(h, need=write)
        r = self.repos.get((typ, rid))
        ns = rid.split("/")[0]
        if r is None or (r.private and not (u and (ns == u["name"] or ns in u["orgs"]))):
            raise HTTPErr(404 if u else 401, "Repository not found", "RepoNotFound")
        inside = u and (ns == u["name"] or ns in u["orgs"])
        if r.gated and not inside and not write and "/resolve/" in h.path:
            raise HTTPErr(403 if u else 401, "Access to this repo is restricted", "GatedRepo")
        if write and not self.can_write(u, ns):
            raise HTTPErr(
                403,
                "Forbidden: you must use a write token to upload to a repository."
                if u["role"] != "write"
                else f"You don't have the rights to write to {rid}",
            )
        return r

    def commit_of(self, r, rev):
        c = r.resolve(rev)
        if c is None:
            raise HTTPErr(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        return c

    # ---- json views
    def entry(self, path, b):
        e = {"type": "file", "path": path, "size": b.size, "oid": b.oid}
        if b.sha256:
            e["lfs"] = {"oid": b.sha256, "size": b.size, "pointerSize": 134}
        if b.xet:
            e["xetHash"] = b.xet
        return e

    def tree(self, c, path, recursive, expand):
        pre = path.strip("/") + "/" if path.strip("/") else ""
        out, dirs, found = [], set(), not pre
        for p in sorted(c.files):
            if not p.startswith(pre):
                continue
            found = True
            rest = p[len(pre) :].split("/")
            for i in range(1, len(rest) if recursive else min(2, len(rest))):
                dirs.add(pre + "/".join(rest[:i]))
            if recursive or len(rest) == 1:
                out.append(self.entry(p, c.files[p]))
        if not found:
            raise HTTPErr(404, f"{path} does not exist on {c.sha}", "EntryNotFound")
        out = [{"type": "directory", "path": d, "size": 0, "oid": sha1(d.encode())} for d in sorted(dirs)] + out
        if expand:
            for e in out:
                e["lastCommit"] = {"id": c.sha, "title": c.title, "date": c.date}
        return out

    def info(self, r, c, q):
        card, tags = {}, []
        if "README.md" in c.files and c.files["README.md"].data:
            m = re.match(rb"\s*---\r?\n(.*?)\r?\n---", c.files["README.md"].data, re.S)
            if m:
                import yaml

                card = yaml.safe_load(m.group(1)) or {}
                tags = list(card.get("tags") or [])
        d = {
            "_id": sha1(r.id.encode())[:24],
            "id": r.id,
            "author": r.id.split("/")[0],
            "sha": c.sha,
            "private": r.private,
            "gated": r.gated,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": tags,
            "cardData": card,
            "createdAt": r.created,
            "lastModified": c.date,
            "usedStorage": sum(b.size for b in c.files.values()),
        }
        sib = []
        for p in sorted(c.files):
            s = {"rfilename": p}
            if q.get("blobs"):
                b = c.files[p]
                s |= {"size": b.size, "blobId": b.oid}
                if b.sha256:
                    s["lfs"] = {"sha256": b.sha256, "size": b.size, "pointerSize": 134}
            sib.append(s)
        d["siblings"] = sib
        if r.type == "model":
            d |= {"modelId": r.id, "library_name": card.get("library_name"), "pipeline_tag": card.get("pipeline_tag")}
            if "model_index.json" in c.files:
                d["config"] = {
                    "diffusers": {"_class_name": json.loads(c.files["model_index.json"].data)["_class_name"]}
                }
        if r.type == "space":
            d |= {"sdk": r.sdk, "runtime": self.runtime(r)}
        return d

    def runtime(self, r):
        return {
            "stage": "NO_APP_FILE" if "app.py" not in r.resolve("main").files else "BUILDING",
            "hardware": {"current": None, "requested": "cpu-basic"},
            "storage": None,
            "gcTimeout": 172800,
        }


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that goes away is no error of the server; whatever else fails prints its traceback."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: the second would wait 40 ms for an ACK
    hub: Hub = None

    def log_message(self, *a):
        pass

    # ---- body (Content-Length or chunked), with optional drop
    def body(self, limit=None, rate=None):
        out = b""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while True:
                n = int(self.rfile.readline().split(b";")[0], 16)
                out += self.rfile.read(n)
                self.rfile.readline()
                time.sleep(n / rate if rate else 0)
                if limit is not None and len(out) >= limit:
                    raise Drop
                if n == 0:
                    break
        else:
            n = int(self.headers.get("Content-Length") or 0)
            if limit is not None and n > 0:
                self.rfile.read(min(limit, n))
                raise Drop
            while len(out) < n:
                chunk = self.rfile.read(min(1 << 16 if rate else 1 << 20, n - len(out)))
                if not chunk:
                    raise Drop
                out += chunk
                time.sleep(len(chunk) / rate if rate else 0)
        return out

    def rst(self):
        self.close_connection = True
        if self.flt and self.flt.fin:
            return  # handler loop ends -> shutdown() -> FIN
        try:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        except OSError:
            pass
        self.close_connection = True

    def send(self, status, payload=b"", ctype="application/json", headers=None, head=False, length=None):
        if not isinstance(payload, (bytes, bytearray)):
            payload = json.dumps(payload).encode()
        self.send_response(status)
        for k, v in (headers or {}).items():
            self.send_header(k, v)
        self.send_header("Content-Type", ctype)
        self.send_header("Content-Length", str(len(payload) if length is None else length))
        self.send_header("X-Request-Id", f"test-{len(self.hub.log)}")
        self.end_headers()
        self.rec["status"] = status
        if head:
            return
        t = self.flt.truncate_after if self.flt else None
        if t is not None and len(payload) > t:
            self.wfile.write(payload[:t])
            self.wfile.flush()
            raise Drop
        self.wfile.write(payload)

    def handle_any(self):
        hub = self.hub
        u = urlsplit(self.path)
        path = unquote(u.path)
        raw = u.path
        q = {k: v[-1] for k, v in parse_qs(u.query).items()}
        self.rec = {
            "m": self.command,
            "p": u.path,
            "q": u.query,
            "auth": "Authorization" in self.headers,
            "host": self.headers.get("Host"),
            "range": self.headers.get("Range"),
            "status": None,
            "te": self.headers.get("Transfer-Encoding"),
        }
        hub.log.append(self.rec)
        self.flt = None
        try:
            with hub.flock:
                for f in hub.faults:
                    if f.method in (self.command, "*") and re.search(f.path, raw):
                        if f.skip > 0:
                            f.skip -= 1
                            continue
                        if f.times > 0:
                            f.times -= 1
                            f.hits += 1
                            self.flt = f
                            break
            f = self.flt
            if f and f.delay:
                time.sleep(f.delay)
            data = self.body(f.drop_after if f else None, f.rate if f else None)
            if f and f.status:
                headers = {"X-Error-Message": f.message, **f.headers}
                return self.send(f.status, {"error": f.message}, headers=headers, head=self.command == "HEAD")
            if f and f.raw is not None:
                self.close_connection = True
                self.wfile.write(f.raw)
                while f.more:
                    self.wfile.write(f.more)
                    time.sleep(f.pause)
                return
            if f and f.lose_response:
                self.send = lambda *a, **k: (_ for _ in ()).throw(Drop())
            self.route(raw, path, q, data)
        except Drop:
            self.rec["status"] = "DROPPED"
            self.rst()
        except HTTPErr as e:
            h = {"X-Error-Message": e.msg}
            if e.code:
                h["X-Error-Code"] = e.code
            if getattr(e, "sha", None):
                h["X-Repo-Commit"] = e.sha
            self.send(e.status, {"error": e.msg}, headers=h, head=self.command == "HEAD")
        except (BrokenPipeError, ConnectionResetError):
            self.rec["status"] = "CLIENT-CLOSED"
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_any

    # ---- routing
    def route(self, raw, path, q, data):
        hub, m = self.hub, self.command
        J = lambda: json.loads(data or b"{}")
        if raw.startswith("/cdn/"):
            return self.cdn(raw, q)
        if raw.startswith("/s3/"):
            return self.s3(raw, q, data)
        if raw == "/lfs-complete" and m == "POST":
            return self.lfs_complete(q, data)
        if raw == "/api/whoami-v2":
            u = hub.user(self, need="x")
            return self.send(
                200,
                {
                    "type": "user",
                    "id": "1",
                    "name": u["name"],
                    "fullname": u["name"],
                    "email": None,
                    "emailVerified": True,
                    "canPay": False,
                    "isPro": False,
                    "periodEnd": None,
                    "avatarUrl": "",
                    "orgs": [
                        {
                            "type": "org",
                            "id": o,
                            "name": o,
                            "fullname": o,
                            "roleInOrg": "write",
                            "avatarUrl": "",
                            "isEnterprise": False,
                        }
                        for o in u["orgs"]
                    ],
                    "auth": {
                        "type": "access_token",
                        "accessToken": {"displayName": "test", "role": u["role"], "createdAt": now()},
                    },
                },
            )
        if raw == "/api/validate-yaml":
            content = J()["content"]
            errs = []
            mt = re.match(r"\s*---\r?\n(.*?)\r?\n---", content, re.S)
            if mt:
                import yaml

                try:
                    meta = yaml.safe_load(mt.group(1)) or {}
                except yaml.YAMLError as e:
                    meta = {}
                    errs.append({"message": f"YAML: {e}"})
                if "license" in meta and not isinstance(meta["license"], (str, list)):
                    errs.append({"message": '"license" must be a string'})
                if J().get("repoType") == "space" and "sdk" not in meta:
                    errs.append({"message": '"sdk" is required'})
            return self.send(400 if errs else 200, {"errors": errs, "warnings": []})
        if raw in ("/api/repos/create", "/api/repos/delete"):
            d = J()
            u = hub.user(self, need="x")
            typ = d.get("type", "model")
            ns = d.get("organization") or u["name"]
            rid = f"{ns}/{d['name']}"
            if not hub.can_write(u, ns):
                raise HTTPErr(403, f'You don\'t have the rights to create a {typ} under the namespace "{ns}"')
            with hub.lock:
                if m == "DELETE":
                    if (typ, rid) not in hub.repos:
                        raise HTTPErr(404, "Repository not found", "RepoNotFound")
                    del hub.repos[(typ, rid)]
                    return self.send(200, b"OK", "text/plain")
                url = f"{hub.endpoint}/{PREFIX[typ]}{rid}"
                if (typ, rid) in hub.repos:
                    return self.send(409, {"error": f"You already created this {typ} repo", "url": url})
                r = Repo(typ, rid, private=d.get("visibility") == "private", sdk=d.get("sdk"))
                ga = ("\n".join(f"{e} filter=lfs diff=lfs merge=lfs -text" for e in LFS_EXT) + "\n").encode()
                files = {".gitattributes": Blob(len(ga), blob_oid(ga), ga)}
                if typ == "space":
                    rd = f"---\ntitle: {d['name']}\nsdk: {r.sdk}\napp_file: app.py\n---\n".encode()
                    files["README.md"] = Blob(len(rd), blob_oid(rd), rd)
                r.branches["main"] = r.add_commit(None, files, "initial commit")
                hub.repos[(typ, rid)] = r
            return self.send(200, {"url": url, "name": rid, "id": "x"})
        mt = re.fullmatch(r"/api/(model|dataset|space)s/([^/]+/[^/]+)(?:/(.*))?", raw)
        if mt:
            return self.api(mt[1], mt[2], mt[3] or "", q, data)
        mt = re.fullmatch(r"/(datasets/|spaces/|)([^/]+/[^/]+)\.git/info/lfs/objects/(batch|verify)", raw)
        if mt:
            return self.lfs_batch({v: k for k, v in PREFIX.items()}[mt[1]], mt[2], mt[3], J())
        mt = re.fullmatch(r"/(datasets/|spaces/|)([^/]+/[^/]+)/(resolve|raw)/([^/]+)/(.+)", raw)
        if mt and m in ("GET", "HEAD"):
            return self.resolve({v: k for k, v in PREFIX.items()}[mt[1]], mt[2], unquote(mt[4]), unquote(mt[5]))
        self.rec["unrouted"] = True
        raise HTTPErr(404, f"no route for {m} {raw}")

    def api(self, typ, rid, rest, q, data):
        hub, m = self.hub, self.command
        seg = [unquote(s) for s in rest.split("/")] if rest else []
        op = seg[0] if seg else ""
        J = lambda: json.loads(data or b"{}")
        if op in ("", "revision") and m in ("GET", "HEAD"):
            r = hub.repo(self, typ, rid)
            return self.send(200, hub.info(r, hub.commit_of(r, seg[1] if seg else "main"), q))
        if op == "tree" and m == "GET":
            r = hub.repo(self, typ, rid)
            c = hub.commit_of(r, seg[1])
            return self.send(
                200,
                hub.tree(
                    c,
                    "/".join(seg[2:]),
                    q.get("recursive", "").lower() == "true",
                    q.get("expand", "").lower() == "true",
                ),
            )
        if op == "paths-info" and m == "POST":
            r = hub.repo(self, typ, rid)
            c = hub.commit_of(r, seg[1])
            paths = (
                J()["paths"]
                if "json" in self.headers.get("Content-Type", "")
                else parse_qs(data.decode()).get("paths", [])
            )
            out = []
            for p in paths:
                if p in c.files:
                    out.append(hub.entry(p, c.files[p]))
                elif any(x.startswith(p.rstrip("/") + "/") for x in c.files):
                    out.append({"type": "directory", "path": p, "size": 0, "oid": sha1(p.encode())})
            return self.send(200, out)
        if op == "refs" and m == "GET":
            r = hub.repo(self, typ, rid)
            d = {
                "branches": [
                    {"name": b, "ref": f"refs/heads/{b}", "targetCommit": s}
                    for b, s in r.branches.items()
                    if not b.startswith("refs/")
                ],
                "tags": [{"name": b, "ref": f"refs/tags/{b}", "targetCommit": s} for b, s in r.tags.items()],
                "converts": [],
            }
            if q.get("include_prs"):
                d["pullRequests"] = [
                    {"name": b[5:], "ref": b, "targetCommit": s}
                    for b, s in r.branches.items()
                    if b.startswith("refs/pr/")
                ]
            return self.send(200, d)
        if op == "commits" and m == "GET":
            r = hub.repo(self, typ, rid)
            c = hub.commit_of(r, seg[1])
            out = []
            while c:
                out.append(
                    {"id": c.sha, "title": c.title, "message": c.message, "date": c.date, "authors": [{"user": "t"}]}
                )
                c = r.commits.get(c.parent)
            return self.send(200, out)
        if op in ("branch", "tag") and m in ("POST", "DELETE"):
            r = hub.repo(self, typ, rid, write=True)
            if m == "DELETE":
                t = r.branches if op == "branch" else r.tags
                if t.pop(seg[1], None) is None:
                    raise HTTPErr(404, f"Invalid rev id: {seg[1]}", "RevisionNotFound")
                return self.send(200, b"", "text/plain")
            d = J()
            name, start = (seg[1], d.get("startingPoint", "main")) if op == "branch" else (d["tag"], seg[1])
            t = r.branches if op == "branch" else r.tags
            if name in t:
                raise HTTPErr(409, "Reference already exists")
            t[name] = hub.commit_of(r, start).sha
            return self.send(200, {"success": True})
        if op == "preupload" and m == "POST":
            r = hub.repo(self, typ, rid, write=q.get("create_pr") != "1")
            c = hub.commit_of(r, seg[1])
            out = []
            d = J()
            for f in d["files"]:
                lfs = f["size"] > 0 and (
                    f["size"] >= hub.inline_max
                    or any(fnmatch.fnmatch(f["path"].split("/")[-1], e) for e in LFS_EXT)
                    or b"\0" in base64.b64decode(f["sample"])
                )
                b = c.files.get(f["path"])
                o = {
                    "path": f["path"],
                    "uploadMode": "lfs" if lfs else "regular",
                    "shouldIgnore": any(
                        fnmatch.fnmatch(f["path"], g) for g in d.get("gitIgnore", "").split() if not g.startswith("#")
                    ),
                }
                if b:
                    o["oid"] = b.sha256 or b.oid
                out.append(o)
            return self.send(200, {"files": out, "commitOid": c.sha})
        if op == "commit" and m == "POST":
            return self.commit(typ, rid, seg[1], q, data)
        if op == "discussions" and m == "POST":
            r = hub.repo(self, typ, rid)
            hub.user(self, need="x")
            d = J()
            n = len(r.prs) + 1
            r.prs.append(d)
            if d.get("pullRequest"):
                r.branches[f"refs/pr/{n}"] = r.branches["main"]
            return self.send(200, {"num": n})
        if op == "discussions" and m == "GET":
            r = hub.repo(self, typ, rid)
            n = int(seg[1])
            return self.send(
                200,
                {
                    "num": n,
                    "title": r.prs[n - 1].get("title", ""),
                    "status": "draft",
                    "author": {"name": "t"},
                    "isPullRequest": True,
                    "createdAt": now(),
                    "events": [],
                    "repo": {"name": rid, "type": typ},
                    "filesWithConflicts": [],
                    "changes": {"base": "refs/heads/main", "mergeCommitId": None},
                    "diffUrl": None,
                },
            )
        if op in ("xet-write-token", "xet-read-token") and m == "GET" and hub.xet != "off":
            hub.repo(self, typ, rid, write=op == "xet-write-token")
            exp = int(time.time()) + 3600
            url = hub.xet if hub.xet.startswith(("local:", "http")) else hub.endpoint + "/cas"
            return self.send(
                200,
                {"accessToken": "xet_" + sha1(os.urandom(8)), "exp": exp, "casUrl": url},
                headers={"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "xet_t", "X-Xet-Token-Expiration": str(exp)},
            )
        if op == "auth-check" and m == "GET":
            hub.repo(self, typ, rid, write=len(seg) > 1)
            return self.send(200, {})
        if typ == "space" and op in ("secrets", "variables"):
            r = hub.repo(self, typ, rid, write=True)
            t = getattr(r, op)
            if m == "POST":
                d = J()
                t[d["key"]] = {
                    "key": d["key"],
                    "value": d.get("value"),
                    "description": d.get("description"),
                    "updatedAt": now(),
                }
            if m == "DELETE":
                t.pop(J()["key"], None)
            return self.send(200, t)
        if typ == "space" and op in ("runtime", "hardware", "restart", "pause", "sleeptime"):
            return self.send(200, hub.runtime(hub.repo(self, typ, rid, write=m == "POST")))
        if op == "settings" and m == "PUT":
            r = hub.repo(self, typ, rid, write=True)
            d = J()
            if "visibility" in d:
                r.private = d["visibility"] == "private"
            if "gated" in d:
                r.gated = d["gated"]
            return self.send(200, {})
        self.rec["unrouted"] = True
        raise HTTPErr(404, f"no route for {m} {rest}")

    def commit(self, typ, rid, rev, q, data):
        hub = self.hub
        pr = q.get("create_pr") == "1"
        r = hub.repo(self, typ, rid, write=not pr)
        ops = [json.loads(l) for l in data.splitlines() if l.strip()]
        head = next(o["value"] for o in ops if o["key"] == "header")
        with hub.lock:
            base = hub.commit_of(r, rev)
            if not pr and rev not in r.branches:
                raise HTTPErr(404, f"Invalid rev id: {rev}", "RevisionNotFound")
            if head.get("parentCommit") and not base.sha.startswith(head["parentCommit"]):
                raise HTTPErr(412, "A commit has happened since. Please refresh and try again.")
            files = dict(base.files)
            for o in ops:
                v = o["value"]
                if o["key"] == "file":
                    b = base64.b64decode(v["content"])
                    files[v["path"]] = Blob(len(b), blob_oid(b), b)
                elif o["key"] == "lfsFile":
                    if not hub.has_lfs(v["oid"], v.get("size")):
                        raise HTTPErr(
                            400,
                            f"Your push was rejected because an LFS pointer pointed to a file that does not exist: {v['path']}",
                        )
                    sz = os.path.getsize(hub.lfs_path(v["oid"]))
                    ptr = f"version https://git-lfs.github.com/spec/v1\noid sha256:{v['oid']}\nsize {sz}\n".encode()
                    files[v["path"]] = Blob(sz, blob_oid(ptr), None, v["oid"], getattr(hub, "xet_of", {}).get(v["oid"]))
                elif o["key"] == "deletedFile":
                    if v["path"] not in files:
                        raise HTTPErr(404, "A file with this name doesn't exist", "EntryNotFound")
                    del files[v["path"]]
                elif o["key"] == "deletedFolder":
                    for p in [p for p in files if p.startswith(v["path"].rstrip("/") + "/")]:
                        del files[p]
                elif o["key"] != "header":
                    raise HTTPErr(400, f"unknown op {o['key']}")
            same = {p: b.oid for p, b in files.items()} == {p: b.oid for p, b in base.files.items()}
            sha = base.sha if same else r.add_commit(base.sha, files, head["summary"], head.get("description", ""))
            out = {
                "success": True,
                "commitOid": sha,
                "commitUrl": f"{hub.endpoint}/{PREFIX[typ]}{rid}/commit/{sha}",
                "hookOutput": "",
            }
            if pr:
                r.prs.append(head)
                n = len(r.prs)
                r.branches[f"refs/pr/{n}"] = sha
                out["pullRequestUrl"] = f"{hub.endpoint}/{PREFIX[typ]}{rid}/discussions/{n}"
            else:
                r.branches[rev] = sha
        self.send(200, out)

    # ---- LFS
    def lfs_batch(self, typ, rid, what, d):
        hub = self.hub
        hub.repo(self, typ, rid, write=True)
        if what == "verify":
            return self.send(200 if hub.has_lfs(d["oid"]) else 404, {})
        objs = []
        for o in d["objects"]:
            x = {"oid": o["oid"], "size": o["size"]}
            if not hub.has_lfs(o["oid"]):
                sig = sha1(os.urandom(8))
                hub.sigs[sig] = o["oid"]
                base = f"http://localhost:{hub.port}/s3/{o['oid']}"  # other origin, like S3
                if hub.multipart_threshold and o["size"] > hub.multipart_threshold:
                    n = -(-o["size"] // hub.part_size)
                    up = {
                        "href": f"{hub.endpoint}/lfs-complete?oid={o['oid']}&sig={sig}",
                        "header": {
                            "chunk_size": str(hub.part_size),
                            **{f"{i:05d}": f"{base}?partNumber={i}&sig={sig}" for i in range(1, n + 1)},
                        },
                    }
                else:
                    up = {"href": f"{base}?sig={sig}"}
                x["actions"] = {
                    "upload": up,
                    "verify": {"href": f"{hub.endpoint}/{PREFIX[typ]}{rid}.git/info/lfs/objects/verify"},
                }
                x["authenticated"] = True
            objs.append(x)
        transfer = "multipart" if hub.multipart_threshold else "basic"
        if getattr(hub, "storage", "lfs") == "xet" and "xet" in d.get("transfers", ()):
            transfer = "xet"  # older clients ask which of the two it is
        self.send(
            200,
            {"transfer": transfer, "objects": objs},
            "application/vnd.git-lfs+json",
        )

    def s3(self, raw, q, data):
        hub = self.hub
        oid = raw.split("/")[2]
        if hub.sigs.get(q.get("sig")) != oid:
            raise HTTPErr(403, "SignatureDoesNotMatch")
        if "partNumber" in q:
            hub.parts[(oid, int(q["partNumber"]))] = data
        else:
            hub.put_lfs(oid, data)
        self.send(200, b"", "text/plain", headers={"ETag": f'"{hashlib.md5(data).hexdigest()}"'})

    def lfs_complete(self, q, data):
        hub = self.hub
        d = json.loads(data)
        oid = d["oid"]
        if hub.sigs.get(q.get("sig")) != oid:
            raise HTTPErr(403, "SignatureDoesNotMatch")
        buf = b""
        for p in d["parts"]:
            b = hub.parts[(oid, p["partNumber"])]
            if p["etag"].strip('"') != hashlib.md5(b).hexdigest():
                raise HTTPErr(400, "bad etag")
            buf += b
        hub.put_lfs(oid, buf)
        self.send(200, {"success": True})

    # ---- download
    def ranged(self, data, headers, ctype="application/octet-stream"):
        rng = self.headers.get("Range")
        status = 200
        headers = {**headers, "Accept-Ranges": "bytes"}
        if rng and (mt := re.fullmatch(r"bytes=(\d*)-(\d*)", rng)):
            a = int(mt[1]) if mt[1] else len(data) - int(mt[2])
            b = int(mt[2]) if mt[1] and mt[2] else len(data) - 1
            if a >= len(data):
                return self.send(416, b"", headers={"Content-Range": f"bytes */{len(data)}"})
            b = min(b, len(data) - 1)
            headers["Content-Range"] = f"bytes {a}-{b}/{len(data)}"
            data = data[a : b + 1]
            status = 206
        self.send(status, data, ctype, headers, head=self.command == "HEAD")

    def resolve(self, typ, rid, rev, path):
        hub = self.hub
        r = hub.repo(self, typ, rid)
        c = hub.commit_of(r, rev)
        b = c.files.get(path)
        if b is None:
            e = HTTPErr(404, "Entry not found", "EntryNotFound")
            e.sha = c.sha
            raise e
        h = {"X-Repo-Commit": c.sha, "X-Linked-Size": str(b.size)}
        if b.sha256 is None:
            h["ETag"] = f'"{b.oid}"'
            return self.ranged(b.data, h)
        h["X-Linked-Etag"] = f'"{b.sha256}"'
        if b.xet:
            h["X-Xet-Hash"] = b.xet
            route = f"{hub.endpoint}/api/{typ}s/{rid}/xet-read-token/{c.sha}"
            h["X-Xet-Refresh-Route"] = route
            h["Link"] = f'<{route}>; rel="xet-auth"'
        if hub.cdn:
            sig = sha1(os.urandom(8))
            hub.sigs[sig] = b.sha256
            h["Location"] = f"{hub.cdn_base}/{b.sha256}?sig={sig}&response-content-disposition=x"
            h["ETag"] = f'"{b.sha256}"'
            return self.send(302, b"", "text/plain", h, head=self.command == "HEAD")
        h["ETag"] = f'"{b.sha256}"'
        with open(hub.lfs_path(b.sha256), "rb") as f:
            return self.ranged(f.read(), h)

    def cdn(self, raw, q):
        hub = self.hub
        oid = raw.split("/")[2]
        if hub.sigs.get(q.get("sig")) != oid:
            raise HTTPErr(403, "SignatureDoesNotMatch")
        if "Authorization" in self.headers:
            raise HTTPErr(400, "auth header leaked to CDN")
        with open(hub.lfs_path(oid), "rb") as f:
            self.ranged(f.read(), {"ETag": f'"{oid}"'})


if __name__ == "__main__":
    import argparse
    import tempfile

    ap = argparse.ArgumentParser()
    ap.add_argument("--port", type=int, default=8099)
    ap.add_argument("--root")
    ap.add_argument("--xet", default="off")
    a = ap.parse_args()
    hub = Hub(a.root or tempfile.mkdtemp(), xet=a.xet)
    hub.add_user("hf_write", "alice", ["acme"])
    hub.add_user("hf_read", "bob", role="read")
    hub.add_user("hf_other", "carol")
    hub.start(a.port)
    print(hub.endpoint, flush=True)
    threading.Event().wait()
