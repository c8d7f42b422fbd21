#!/usr/bin/env python3
"""Measures job-queue libraries in one harness and prints one JSON. See README.md."""
from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from benchlib import RedisProbe  # noqa: E402

HOME = Path(os.environ.get("BENCH_HOME", os.path.join(tempfile.gettempdir(), "bench")))
MEASURES = ["enqueue", "drain", "latency", "idle", "delayed"]


ADAPTERS = [HERE / "adapters", *map(Path, filter(None, os.environ.get("BENCH_ADAPTERS", "").split(os.pathsep)))]


def meta(name: str) -> dict:
    """META of an adapter, read without importing it (its libraries live in another venv)."""
    path = next((d / f"{name}.py" for d in ADAPTERS if (d / f"{name}.py").exists()), None)
    if not path:
        raise SystemExit(f"no adapter {name}")
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "META":
            return ast.literal_eval(node.value)
    raise SystemExit(f"{name}: no META")


def all_peers() -> list[str]:
    return sorted(p.stem for d in ADAPTERS for p in d.glob("*.py") if "META = " in p.read_text())


class Servers:
    def __init__(self) -> None:
        self.env = dict(os.environ)
        self.env.setdefault("BENCH_REDIS_PORT", "7402")
        self.env.setdefault("BENCH_PG_PORT", "7432")
        self.work = HOME / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        self.env["BENCH_WORK"] = str(self.work)
        self.procs: list[subprocess.Popen] = []
        self.pg_on = False
        self.probe = None

    def redis(self) -> RedisProbe:
        if self.probe is None:
            port = self.env["BENCH_REDIS_PORT"]
            if not os.environ.get("BENCH_REDIS_EXTERNAL"):
                exe = os.environ.get("BENCH_REDIS_SERVER", "redis-server")
                log = open(self.work / "redis.log", "wb")
                self.procs.append(subprocess.Popen([exe, "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(self.work)], stdout=log, stderr=log))
            for _ in range(100):
                try:
                    self.probe = RedisProbe(int(port))
                    break
                except OSError:
                    time.sleep(0.05)
            else:
                raise SystemExit("redis did not start")
        return self.probe

    def psql(self, sql: str, db: str = "postgres") -> str:
        r = subprocess.run(["psql", "-h", "127.0.0.1", "-p", self.env["BENCH_PG_PORT"], "-U", "bench", "-d", db, "-qAtc", sql], capture_output=True, text=True)
        if r.returncode:
            raise RuntimeError(r.stderr)
        return r.stdout.strip()

    def postgres(self) -> None:
        if not self.pg_on:
            if not os.environ.get("BENCH_PG_EXTERNAL"):
                subprocess.run(["bash", str(HERE / "pg.sh"), "start"], env=self.env, check=True, stdout=subprocess.DEVNULL)
            self.pg_on = True

    def pg_cpu_s(self) -> float | None:
        """CPU seconds of the server's processes so far, also of those that have ended; None where it is not ours."""
        if os.environ.get("BENCH_PG_EXTERNAL"):
            return None
        postmaster = int((HOME / "pgdata" / "postmaster.pid").read_text().split("\n", 1)[0])
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                words = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has just ended; its parent has its time
            if int(stat.parent.name) == postmaster:
                ticks += sum(map(int, words[11:15]))
            elif int(words[1]) == postmaster:
                ticks += sum(map(int, words[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def reset(self, backend: str) -> None:
        if backend == "redis":
            self.redis().cmd("FLUSHALL", "SYNC")
        elif backend == "postgres":
            self.postgres()
            self.psql("DROP DATABASE IF EXISTS bench WITH (FORCE)")
            self.psql("CREATE DATABASE bench")
            self.psql("CHECKPOINT")
        elif backend == "sqlite":
            for f in self.work.glob("queue.sqlite3*"):
                shutil.rmtree(f) if f.is_dir() else f.unlink()

    def stop(self) -> None:
        for p in self.procs:
            p.terminate()
            p.wait()
        if self.pg_on and not os.environ.get("BENCH_PG_EXTERNAL"):
            subprocess.run(["bash", str(HERE / "pg.sh"), "stop"], env=self.env, stdout=subprocess.DEVNULL)


class Child:
    def __init__(self, sv: Servers, name: str, scenario: str, n: int = 0, concurrency: int = 100, **args) -> None:
        self.label = f"{name}:{scenario}"
        spec = json.dumps({"adapter": name, "scenario": scenario, "n": n, "concurrency": concurrency, "args": args})
        m = meta(name)
        if m.get("node"):
            cmd, cwd = ["node", "child.mjs", spec], HOME / "node"
            shutil.copy(HERE / "node" / "child.mjs", cwd / "child.mjs")
            if (HERE / "node" / "pg_opts.mjs").exists():
                shutil.copy(HERE / "node" / "pg_opts.mjs", cwd / "pg_opts.mjs")
        else:
            cmd, cwd = [str(HOME / "venv" / m["venv"] / "bin" / "python"), str(HERE / "child.py"), spec], sv.work
        self.err = open(sv.work / f"{name}-{scenario}.err", "wb")
        self.p = subprocess.Popen(cmd, cwd=cwd, env=sv.env, stdout=subprocess.PIPE, stderr=self.err, text=True, start_new_session=True)

    def wait_ready(self) -> bool:
        for line in self.p.stdout:
            if line.startswith("READY"):
                return True
        return False

    def result(self, timeout: float = 200) -> dict:
        late = threading.Timer(timeout, self.kill)
        late.start()
        try:
            # Up to that line only: what a library has forked (rq's scheduler) keeps the pipe open after it.
            found = next((line for line in self.p.stdout if line.startswith("RESULT ")), None)
        finally:
            late.cancel()
        self.kill()
        return {"error": f"{self.label}: no result (rc {self.p.returncode})"} if found is None else json.loads(found[7:])

    def kill(self) -> None:
        try:
            os.killpg(self.p.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        try:
            self.p.wait(5)
        except subprocess.TimeoutExpired:
            pass


def drained(runs: list[dict]) -> dict:
    """The medians of one peer's drains, and each round's rate."""
    d: dict = {"rounds": [r.get("jobs_per_s") for r in runs]}
    good = [r for r in runs if r.get("ok")]
    if not good:
        return d | {"failed": runs[-1]}
    for f in ("jobs_per_s", "cpu_s_per_1k", "peak_rss_mb", "boot_s", "pg_xacts_per_job", "pg_wal_bytes_per_job", "pg_cpu_us_per_job"):
        v = [r[f] for r in good if r.get(f) is not None]
        d[f] = median(v) if v else None
    d["n"], d["redis"], d["fill"] = good[-1]["n"], good[-1].get("redis"), good[-1].get("fill")
    d["server_cpu_us_per_job"] = median([r["redis"]["server_cpu_us_per_job"] for r in good]) if good[-1].get("redis") else d["pg_cpu_us_per_job"]
    return d


def enqueued(runs: list[dict]) -> dict:
    """The medians of one peer's adding, and each round's rates."""
    good = [r for r in runs if "error" not in r]
    if not good:
        return {"failed": runs[-1]}
    d = {k: v for k, v in good[-1].items() if not k.endswith("_per_s")}
    d["rounds"] = {k: [r.get(k) for r in runs] for k in good[-1] if k.endswith("_per_s")}
    return d | {k: median(x for x in v if x is not None) for k, v in d["rounds"].items()}


def waited(runs: list[dict]) -> dict:
    """The medians of one peer's times, and each round's."""
    good = [r for r in runs if r.get("ok", "error" not in r) and "skipped" not in r]
    if not good:
        return runs[-1]
    numbers = [k for k, v in good[-1].items() if isinstance(v, float | int) and not isinstance(v, bool)]
    rounds = {k: [r.get(k) for r in runs] for k in numbers}
    return good[-1] | {"rounds": rounds} | {k: median(r[k] for r in good) for k in numbers}


class Bench:
    def __init__(self, a) -> None:
        self.a = a
        self.sv = Servers()

    def child(self, *x, **k) -> Child:
        return Child(self.sv, *x, **k)

    def n_for(self, m: dict) -> int:
        return m.get("n") or (self.a.n_slow if m.get("slow") or m["backend"] in ("postgres", "sqlite") else self.a.n)

    def pg_counts(self, m: dict) -> dict | None:
        if m["backend"] != "postgres":
            return None
        x, w = self.sv.psql("SELECT sum(xact_commit) FROM pg_stat_database WHERE datname='bench'"), self.sv.psql("SELECT pg_current_wal_lsn() - '0/0'")
        return {"xacts": int(float(x or 0)), "wal": float(w), "cpu": self.sv.pg_cpu_s()}

    @staticmethod
    def pg_delta(a, b, n) -> dict:
        found = {"pg_xacts_per_job": (b["xacts"] - a["xacts"]) / n, "pg_wal_bytes_per_job": (b["wal"] - a["wal"]) / n}
        return found if a["cpu"] is None else found | {"pg_cpu_us_per_job": (b["cpu"] - a["cpu"]) / n * 1e6}

    def enqueue(self, name: str) -> dict:
        m = meta(name)
        self.sv.reset(m["backend"])
        small = m["backend"] == "postgres" or (m.get("slow") and m["backend"] != "sqlite")
        return self.child(name, "enqueue", 0, 50, seq=500 if small else 2000, conc=1000 if small else 5000, bulk=2000 if small else 10000).result()

    def drain(self, name: str, concurrency: int) -> dict:
        m = meta(name)
        n = self.n_for(m)
        if m["backend"] == "memory":
            return self.child(name, "inproc", n, concurrency, timeout=100).result()
        self.sv.reset(m["backend"])
        fill = self.child(name, "fill", n, concurrency).result()
        if "error" in fill:
            return fill
        a = self.pg_counts(m)
        r = self.child(name, "drain", n, concurrency, timeout=100).result()
        if a:
            time.sleep(1.2)
            r |= self.pg_delta(a, self.pg_counts(m), n)
        r["fill"] = fill
        return r

    def latency(self, name: str) -> dict:
        m = meta(name)
        self.sv.reset(m["backend"])
        w = self.child(name, "latency", 300, 100, timeout=30)
        if not w.wait_ready():
            return w.result(1)
        p = self.child(name, "produce", 300, 100)
        pr = p.result(60)
        return w.result(40) | ({"producer": pr} if "error" in pr else {})

    def idle(self, name: str) -> dict:
        m = meta(name)
        self.sv.reset(m["backend"])
        a = None
        if m["backend"] == "postgres":
            self.child(name, "fill", 1, 10).result()
        r = self.child(name, "idle", 0, 100, secs=self.a.idle_s).result(60)
        return r

    def delayed(self, name: str) -> dict:
        m = meta(name)
        if m.get("no_delay"):
            return {"skipped": m["no_delay"]}
        self.sv.reset(m["backend"])
        n = 5000 if not m.get("slow") else 2000
        f = self.child(name, "fill_delayed", n, 100, lead=m.get("lead", 14 if m["backend"] != "redis" or m.get("slow") else 9)).result()
        if "error" in f:
            return f
        w = self.child(name, "delayed", n, 100, timeout=60)
        r = w.result(90)
        return r | {"n": n, "margin_s": f["margin_s"], "fill_s": f["fill_s"]}

    def interleaved(self, peers: list[str], one, log) -> dict[str, list[dict]]:
        """A, B, C, A, B, C ...: what moves the machine moves all of them."""
        runs: dict[str, list[dict]] = {p: [] for p in peers}
        for _ in range(self.a.rounds):
            for p in peers:
                r = one(p)
                runs[p].append(r)
                log(p, r)
        return runs

    def run(self) -> dict:
        out: dict = {"machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "load_before": os.getloadavg()}, "peers": {}}
        peers = [p for p in self.a.peers if p]
        for p in peers:
            m = meta(p)
            out["peers"][p] = {"backend": m["backend"], "results": m.get("results"), "notes": m.get("notes")}

        def log(p, k, r):
            brief = {x: (round(v, 2) if isinstance(v, float) else v) for x, v in r.items() if not isinstance(v, dict)}
            print(f"[{time.strftime('%H:%M:%S')}] {p} {k} {brief}", file=sys.stderr, flush=True)

        try:
            for k in self.a.measures:
                if k == "drain":
                    for c in self.a.concurrency:
                        mine = [p for p in peers if c == self.a.concurrency[0] or not meta(p).get("fixed_concurrency")]
                        runs = self.interleaved(mine, lambda p, c=c: self.drain(p, c), lambda p, r, c=c: log(p, f"drain c={c}", r))
                        for p in mine:
                            out["peers"][p][f"drain_c{c}"] = drained(runs[p])
                elif k == "enqueue":
                    mine = [p for p in peers if meta(p)["backend"] != "memory"]
                    runs = self.interleaved(mine, self.enqueue, lambda p, r: log(p, k, r))
                    for p in mine:
                        out["peers"][p][k] = enqueued(runs[p])
                else:
                    mine = [p for p in peers if meta(p)["backend"] != "memory"]
                    runs = self.interleaved(mine, getattr(self, k), lambda p, r, k=k: log(p, k, r))
                    for p in mine:
                        out["peers"][p][k] = waited(runs[p])
        finally:
            self.sv.stop()
        out["machine"]["load_after"] = os.getloadavg()
        for c in self.a.concurrency:
            key = f"drain_c{c}"
            rates = {p: v[key]["jobs_per_s"] for p, v in out["peers"].items() if v.get(key, {}).get("jobs_per_s")}
            if rates:
                ref = rates.get("bullmq_node")
                py = {p: v for p, v in rates.items() if not p.startswith("bullmq_node")}
                best = max(py, key=py.get) if py else None
                out[f"ratios_c{c}"] = {p: {"to_node_bullmq": v / ref if ref else None, "to_fastest_python": v / py[best] if best else None} for p, v in rates.items()}
                out[f"fastest_python_c{c}"] = best
        return out


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("peers", nargs="*", help="adapter names; all if none")
    ap.add_argument("--measures", default=",".join(MEASURES))
    ap.add_argument("--concurrency", default="100", help="comma list for drain")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("-n", type=int, default=10000)
    ap.add_argument("--n-slow", type=int, default=2000)
    ap.add_argument("--idle-s", type=float, default=10)
    ap.add_argument("--list", action="store_true")
    ap.add_argument("-o", "--out")
    a = ap.parse_args()
    if a.list:
        for p in all_peers():
            print(p, meta(p)["backend"], meta(p).get("notes") or "")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    a.peers = a.peers or all_peers()
    a.measures = a.measures.split(",")
    a.concurrency = [int(x) for x in a.concurrency.split(",")]
    text = json.dumps(Bench(a).run(), indent=1)
    if a.out:
        Path(a.out).write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
