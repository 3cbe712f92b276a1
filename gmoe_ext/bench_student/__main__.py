"""``python -m gmoe_ext.bench_student``: measure the latency of a packed student and write the report."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from .. import arguments
from ..collect_env import processor
from ..errors import ConfigError, GmoeError
from ..terminal import report_error, tell
from ..timing import Samples, duration, in_bursts
from .contestants import TEACHER, line_up
from .report import Findings, write
from .subject import Requests, Subject, load

BATCHES = (1, 8, 64, 1024)
_FETCHES = 64  # requests whose neighbourhood is counted


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; return the exit code (0 done, 1 failed, 2 settings, 3 data)."""
    parser = arguments.Parser(
        prog="python -m gmoe_ext.bench_student", description="Measure the latency of a packed student."
    )
    parser.add_argument("student", type=arguments.path, help="a packed file, or a run directory of gmoe_ext.train")
    parser.add_argument(
        "--run", type=arguments.path, help="the file's run, for its teacher (default: the directory it lies in)"
    )
    parser.add_argument(
        "--data_root", type=arguments.path, help="where the run's data are (default: where they were during training)"
    )
    parser.add_argument(
        "--out", type=arguments.path, help="directory of latency.md, .json, .png (default: beside the student)"
    )
    rows, threads = arguments.whole(1, 1 << 20), arguments.whole(1, 1024)
    parser.add_argument("--batch", type=rows, nargs="+", default=list(BATCHES), help="rows per request")
    parser.add_argument(
        "--threads", type=threads, nargs="+", help="for the throughput (default: 1, 2, 4, ... all cores)"
    )
    parser.add_argument(
        "--seconds", type=arguments.positive(3600), default=3.0, help="for each contestant and batch or thread count"
    )
    parser.add_argument("--seed", type=arguments.whole(0), default=0, help="seed of the requests")
    before = torch.get_num_threads()
    try:
        options = parser.parse_args(argv)
        with tempfile.TemporaryDirectory() as scratch:
            folder = _folder(options)
            subject = load(options.student, options.run, options.data_root, Path(scratch))
            findings = measure(subject, options, Path(scratch))
        for path in write(findings, folder):
            tell(f"written    {path}")
    except (GmoeError, ValueError, OSError) as error:
        return report_error(error)
    finally:
        torch.set_num_threads(before)
    return 0


def measure(subject: Subject, options: argparse.Namespace, scratch: Path) -> Findings:
    """Measure latency by batch on one thread, then throughput of the largest batch by threads."""
    findings = Findings(facts(subject))
    for name, text in findings.facts.items():
        tell(f"{name:10} {text}")
    for batch in options.batch:
        requests = subject.requests(batch, options.seed)
        wall, own = time.perf_counter(), time.process_time()
        findings.latency[batch] = _round(subject, requests, 1, options.seconds, scratch, findings)
        findings.share[batch] = (time.process_time() - own) / (time.perf_counter() - wall)
        if subject.teacher is not None and requests.ids is not None:
            findings.fetched[batch] = fetched(subject, requests)
        _tell_times(f"{batch:,} rows", findings.latency[batch])
    findings.throughput_batch = max(options.batch)
    requests = subject.requests(findings.throughput_batch, options.seed)
    for threads in options.threads or default_threads():
        findings.throughput[threads] = _round(subject, requests, threads, options.seconds, scratch, findings)
        _tell_times(f"{threads} threads", findings.throughput[threads])
    return findings


def _round(
    subject: Subject, requests: Requests, threads: int, seconds: float, scratch: Path, findings: Findings
) -> dict[str, Samples]:
    lined_up = line_up(subject, requests, threads, scratch)
    findings.absent |= lined_up.absent
    return in_bursts(lined_up.asks, seconds)


def fetched(subject: Subject, requests: Requests) -> int | None:
    """Return the median number of nodes the teacher reads for a request; None where it reads the whole graph."""
    assert subject.teacher is not None and requests.ids is not None
    reached = [subject.teacher.reach(nodes) for nodes in requests.ids[:_FETCHES]]
    sizes = [subject.teacher.graph.num_nodes if nodes is None else len(nodes) for nodes in reached]
    middle = int(statistics.median_low(sizes))
    return None if middle == subject.teacher.graph.num_nodes else middle


def facts(subject: Subject) -> dict[str, str]:
    """Describe the student, the machine and the software."""
    from .. import __version__

    info = subject.packed.info()
    member = info["layers"][: len(info["layers"]) // info["members"]]
    widths = " -> ".join(str(n) for n in [member[0]["in"], *(layer["out"] for layer in member)])
    experts = ", ".join(f"{layer['k']} of {layer['experts']}" for layer in member)
    members = f"{info['members']} members, " if info["members"] > 1 else ""
    weights = ", ".join(sorted({layer["weights"] for layer in info["layers"]}))
    cores = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores"
    found = {
        "student": f"{info['model']} {widths}, {members}experts {experts}, {weights}, {info['num_bytes'] / 1e6:.1f} MB",
        "machine": f"{processor()}, {cores}, load average {os.getloadavg()[0]:.2f}, instruction set {info['cpu']}",
        "software": f"gmoe_ext {__version__}, torch {torch.__version__}, {time.strftime('%Y-%m-%d', time.gmtime())}",
    }
    if subject.data is not None and subject.teacher is not None:
        found["graph"] = f"{subject.data.name}: {subject.data.summary()}"
        size = sum(p.numel() for p in subject.teacher.model.parameters())
        found[TEACHER] = (
            f"{subject.teacher_name}, {size:,} parameters; a request fetches all {subject.teacher.hops} hops of its "
            "nodes' neighbourhood from memory, or the whole graph where that is most of it"
        )
    return found


def default_threads() -> list[int]:
    """Return 1, 2, 4, ... up to all cores of this process."""
    cores = len(os.sched_getaffinity(0))
    return sorted({*(1 << i for i in range(cores.bit_length()) if 1 << i <= cores), cores})


def _folder(options: argparse.Namespace) -> Path:
    """Check that the student is there, and make the directory of the report before anything is measured."""
    if not options.student.is_dir():
        arguments.check_file(options.student, "student")
    folder: Path = options.out or (options.student if options.student.is_dir() else options.student.parent)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot make this directory ({error.strerror})") from error
    return folder


def _tell_times(what: str, times: dict[str, Samples]) -> None:
    tell(f"{what:10} " + ", ".join(f"{name} {duration(one.median)}" for name, one in times.items()))


if __name__ == "__main__":
    sys.exit(main())
