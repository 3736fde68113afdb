"""`make bench`: ratios measured within one run, each process with the same threads, as a table.

`make bench ONLY="training sweeps"` measures some of them. Nothing else should run meanwhile. Every ratio is
the best of interleaved repeats of both sides.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from seal_ray.device import usable_cores
from tests.benchmarks import analysis_curvature, analysis_depth, analysis_probe, services, sweeps, training
from tests.benchmarks.measure import Result

MODULES = {
    module.__name__.rpartition(".")[2]: module
    for module in (training, services, sweeps, analysis_depth, analysis_curvature, analysis_probe)
}


def main() -> None:
    only = sys.argv[1:] or list(MODULES)
    if unknown := set(only) - set(MODULES):
        sys.exit(f"error: {', '.join(sorted(unknown))}: is none of {', '.join(MODULES)}")
    torch.set_num_threads(1)
    console = Console(width=118, highlight=False)
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        data = training.synthetic_images(Path(folder))
        for benchmark in (benchmark for name in only for benchmark in MODULES[name].BENCHMARKS):
            for result in benchmark(data):
                results.append(result)
                console.print(f"  {result.what}: {result.shown}", markup=False)
    cpu = torch.backends.cpu.get_cpu_capability()
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{usable_cores()} cores ({cpu}), torch {torch.__version__}, 1 thread a process",
        title_justify="left",
    )
    for heading in ("what", "measured", "target", ""):
        table.add_column(heading, no_wrap=heading != "what")
    for result in results:
        table.add_row(result.what, result.shown, result.target, result.verdict)
    console.print(table)


if __name__ == "__main__":
    main()
