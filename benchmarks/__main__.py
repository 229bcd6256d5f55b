"""Run the benchmarks one after another, each in a process of its own, and write docs/benchmarks.md.

    python -m benchmarks                    # all of them (`make bench`)
    python -m benchmarks scoring --quick    # one of them, on small sizes; the docs are left alone

docs/benchmarks.json keeps the rows of every module, so that running one of them renews its section only.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import Row

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
PACKAGES = ("numpy", "scipy", "numba", "torch", "transformers")


def modules() -> list[str]:
    """Names of the benchmark modules, without `bench_`."""
    return sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def machine() -> dict[str, Any]:
    """What one must know to compare figures: processor, cores, memory, versions, load at the start."""
    import importlib.metadata

    import psutil

    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def run_one(name: str, quick: bool, out: Path) -> None:
    """Run one module here and write its rows as JSON."""
    info, start = machine(), time.perf_counter()
    rows: list[Row] = importlib.import_module(f"benchmarks.bench_{name}").run(quick)
    doc = (sys.modules[f"benchmarks.bench_{name}"].__doc__ or "").strip().splitlines()[0]
    section = {"about": doc, "machine": info, "seconds": round(time.perf_counter() - start, 1)}
    out.write_text(json.dumps({**section, "rows": [{**asdict(row), "ratio": row.ratio} for row in rows]}))


def figure(value: float | None, unit: str) -> str:
    """Three significant digits, thousands set apart."""
    if value is None:
        return ""
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{text} {unit}".strip()


def markdown(sections: dict[str, Any]) -> str:
    """The page: one table per module."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench` (`python -m benchmarks`); do not edit. Both sides of a ratio were measured",
        "in the same run on the same machine.",
    ]
    for name, section in sorted(sections.items()):
        m = section["machine"]
        packages = ", ".join(f"{k} {v}" for k, v in m["packages"].items())
        lines += [
            "",
            f"## {name}",
            "",
            section["about"],
            "",
            f"{m['date']}, {m['cores']} cores of {m['cpu']}, {m['memory_gib']} GiB, load average"
            f" {m['load']} at the start, Python {m['python']}, {packages}. `python -m benchmarks {name}`",
            "",
            "| what | tagsteer | compared with | its figure | ratio | asked for | how |",
            "|---|--:|---|--:|--:|---|---|",
        ]
        for r in section["rows"]:
            ratio = figure(r["ratio"], "×") if r["ratio"] is not None else ""
            ours, theirs = figure(r["value"], r["unit"]), figure(r["against_value"], r["unit"])
            cells = (r["what"], ours, r["against"], theirs, ratio, r["target"], r["note"])
            lines.append("| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Run the benchmarks, write the table."
    )
    parser.add_argument("names", nargs="*", help=f"which ones: {', '.join(modules())} (default: all)")
    parser.add_argument("--quick", action="store_true", help="small sizes, print only")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        run_one(args.one, args.quick, args.out)
        return 0
    unknown = sorted(set(args.names) - set(modules()))
    if unknown:
        print(f"no benchmark named {', '.join(unknown)}: choose from {', '.join(modules())}", file=sys.stderr)
        return 2
    store = DOCS / "benchmarks.json"
    kept = json.loads(store.read_text()) if store.exists() and not args.quick else {}
    done, failed = {}, []
    with tempfile.TemporaryDirectory() as tmp:
        for name in args.names or modules():
            print(f"== {name}", file=sys.stderr, flush=True)
            out = Path(tmp) / f"{name}.json"
            command = [sys.executable, "-m", "benchmarks", "--one", name, "--out", str(out)]
            code = subprocess.run(
                command + (["--quick"] if args.quick else []), cwd=HERE.parent, check=False
            ).returncode
            if code:
                failed.append(f"{name} (exit {code})")
            else:
                done[name] = json.loads(out.read_text())
    print(markdown(done))
    if done and not args.quick:
        DOCS.mkdir(exist_ok=True)
        sections = {name: s for name, s in {**kept, **done}.items() if name in modules()}
        store.write_text(json.dumps(sections, indent=1, ensure_ascii=False) + "\n")
        (DOCS / "benchmarks.md").write_text(markdown(sections))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
