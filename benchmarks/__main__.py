"""``python -m likeness.benchmarks [NAME] [--quick]``: list the benchmarks, or run and record one."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..core.errors import LikenessError
from ..core.paths import write_atomic

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).with_name("results")
PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy", "pillow")


@dataclass(frozen=True)
class Bench:
    module: str  # in this package
    what: str
    bar: str


BENCHES = {
    "toybox-card": Bench(
        "toybox_card",
        "The built-in model on prompts it never saw: what it draws right, and how sharp",
        "VAE 28 dB; noun and scene 95 %, colour 90 %, accessory 80 %, two objects 75 %; retrieval 0.85",
    ),
    "learning": Bench(
        "learning",
        "Six subjects, three seeds: identity on held-out photos, prompts, overfitting, prior preservation",
        "identity 0.6 (DreamBooth) and 0.4 (Textual Inversion); CLIP-T within 10 %; drift halved",
    ),
    "attractor": Bench(
        "attractor",
        "20 subjects, half of them in one place: TI against TI+ on held-out photos; what A* and v* look like",
        "TI+ leads in DINO and CLIP-T where photos share a background; A* and v* 0.1 apart",
    ),
    "attractor-neti": Bench(
        "attractor_neti",
        "The same for NeTI against NeTI+",
        "NeTI+ leads in DINO and CLIP-T where photos share a background; A* and v* 0.1 apart",
    ),
    "attractor-ablation": Bench(
        "attractor_ablation",
        "TI+ under each schedule of the contrastive loss, and without each of its losses",
        "every schedule and loss in the table",
    ),
    "attractor-speed": Bench(
        "attractor_speed",
        "A step of TI+, NeTI and NeTI+ beside one of TI on the same batch, in turns",
        "3.2 times TI's (TI+) and 4 times (NeTI)",
    ),
    "masks": Bench(
        "masks",
        "Masks without weights on Toybox against the renderer's exact ones",
        "median IoU 0.80 (GrabCut) and 0.85 (Toybox's grounding, then GrabCut)",
    ),
    "segmenter-shapes": Bench(
        "segmenter_shapes",
        "Florence-2, OWLv2, SAM 2 and IS-Net at their published architectures, with random weights",
        "each runs end to end",
    ),
    "exactness": Bench(
        "exactness",
        "Fresh processes, kills and disturbances: the same bits",
        "every check bit-identical",
    ),
    "batch": Bench(
        "batch",
        "What a batch costs beside its jobs, two workers over one, a kill in the middle, 100,000 rows",
        "50 ms a job; 1.8 times; every job once; 32 MiB more for 90,000 rows more",
    ),
    "batch-targets": Bench(
        "batch_targets",
        "The same over two ComfyUI servers and over Ray, with a worker killed on the way too",
        "every job once; 1.8 times; 50 ms a job on Ray",
    ),
    "step-speed": Bench(
        "step_speed",
        "A DreamBooth LoRA step against diffusers' train_dreambooth_lora.py, alternated",
        "1.3 times faster",
    ),
    "instructbooth": Bench(
        "instructbooth",
        "Alignment of six subjects, three seeds, in the shape of Table 1: activities, identity",
        "reward up 0.8 stds, CLIP-T and unseen up, identity 0.9 of DreamBooth's",
    ),
    "reward-gradient": Bench(
        "reward_gradient",
        "Align by Gradient of six subjects, three seeds: activities, identity",
        "reward up 0.8 stds, CLIP-T and unseen up, identity 0.9 of DreamBooth's",
    ),
    "instructbooth-curves": Bench(
        "instructbooth_curves",
        "Figure 8: the reward over updates, prompts of both kinds against identifier-only ones",
        "both kinds need 70 % of the updates",
    ),
    "reward-gradient-curves": Bench(
        "reward_gradient_curves",
        "Figure 8 by the reward's gradient: prompts of both kinds against identifier-only ones",
        "both kinds need 70 % of the updates",
    ),
    "instructbooth-description": Bench(
        "instructbooth_description",
        "Appendix F: rare-looking subjects learned with and without their description",
        "identity up",
    ),
    "instructbooth-guard": Bench(
        "instructbooth_guard",
        "The identity guard against a reward that is made to be hacked, five runs",
        "5 of 5 stopped; no more identity lost than the margin",
    ),
    "ddpo-speed": Bench(
        "ddpo_speed",
        "An epoch of alignment against ddpo-pytorch's loop, alternated, at equal numbers",
        "2 times faster",
    ),
    "image-reward-parity": Bench(
        "image_reward_parity",
        "ImageReward's full architecture against its own package, with random weights",
        "64 scores within 1e-4",
    ),
    "composing": Bench(
        "composing",
        "Scenes without any model: layouts, speed beside the reference's step, memory over a build",
        "layouts hold within 3 tries; 8 scenes a second at 1024 px; 3 times the reference; constant memory",
    ),
    "composing-photos": Bench(
        "composing_photos",
        "Twenty scenes at 1024 px from real photos, cut out by GrabCut; LIKENESS_PHOTOS names their folder",
        "no box outside, no subject missing from a caption, subject pixels equal inside the eroded masks",
    ),
    "gen4gen": Bench(
        "gen4gen",
        "Custom Diffusion on composed scenes against separate photos; CP-CLIP on pictures of known truth",
        "CP-CLIP up 25 %, presence up, TI-CLIP 0.97 of photos learned alike and at their best; 98 % ranked",
    ),
    "full-shape": Bench(
        "full_shape",
        "Stable Diffusion 1.5's full shape at 512 px: step time, memory, share of the matmul rate",
        "3 CPU steps within 12 GB",
    ),
    "host-start": Bench(
        "host_start",
        "What the pack adds to ComfyUI's start",
        "0.0 s in its own list; 0.05 s over an empty pack; nothing heavy imported",
    ),
    "host-parity": Bench(
        "host_parity",
        "Core's loaders and samplers on LoRA, embedding, NeTI, Custom Diffusion, against diffusers and ours",
        "relative error 1e-3, no unmatched key, 40 dB, on Toybox and on SD 1.5's full shape",
    ),
    "host-install": Bench(
        "host_install",
        "The registry's archive, and its install into a fresh ComfyUI",
        "42 MB; 60 s with dependencies cached; every node there",
    ),
    "host-quickstart": Bench(
        "host_quickstart",
        "The quickstart as shipped by the embedded runner, comfy run, likeness run --server, and the page",
        "the same artifacts, bit for bit; no missing node, every output seen",
    ),
    "host-workflow": Bench(
        "host_workflow",
        "Every workflow in few steps by the embedded runner, comfy run, likeness run --server, and the page",
        "the same artifacts, bit for bit; no missing node, every output seen",
    ),
    "host-interrupts": Bench(
        "host_interrupts",
        "30 interrupts at random moments of a training in a real ComfyUI, 20 of them by the page",
        "stops within a step and 2 s; the checkpoint loads, resume is bit-identical, the base untouched",
    ),
    "host-soak": Bench(
        "host_soak",
        "200 good and bad prompts in turn, then 1,000 trainings in the queue, on one server",
        "every bad one names node and input; no failure; 50 MB more than a pack that does nothing",
    ),
    "page-speed": Bench(
        "page_speed",
        "Script time to open 60 nodes with 5 runs, drawing 10,000 steps, what a training tells the page",
        "100 ms over no scripts; 50 ms; 20 KB/s",
    ),
    "study-browsers": Bench(
        "study_browsers",
        "Seven raters in browsers of their own, 210 ballots, the study's server killed twice on the way",
        "none lost, none doubled",
    ),
}


def available() -> dict[str, Bench]:
    """The benches whose module is there."""
    return {name: b for name, b in BENCHES.items() if importlib.util.find_spec(_module(b))}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when every bar holds, 1 when one does not, 2 when the name is not known."""
    parser = argparse.ArgumentParser(prog="python -m likeness.benchmarks", description=__doc__)
    parser.add_argument("name", nargs="?", help="which one to run; without it they are listed")
    parser.add_argument("--quick", action="store_true", help="a small form, at most 5 minutes on 2 cores")
    given = parser.parse_args(arguments)
    console, benches = Console(), available()
    if not given.name:
        console.print(_listing(benches))
        return 0
    if given.name not in benches:
        console.print(
            f"There is no benchmark {given.name!r}. There are: {', '.join(benches) or 'none'}.", markup=False
        )
        return 2
    try:
        result, path = measure(given.name, benches[given.name], quick=given.quick)
    except LikenessError as error:
        console.print(str(error), markup=False)
        return 1
    console.print(_outcome(given.name, result["bars"]))
    console.print(str(path), markup=False, soft_wrap=True)
    return 0 if all(b["holds"] for b in result["bars"]) else 1


def measure(name: str, bench: Bench, *, quick: bool, results: Path = RESULTS) -> tuple[dict[str, Any], Path]:
    """Run one bench and write its record. A quick run never touches a full result."""
    started = time.perf_counter()
    measured = importlib.import_module(_module(bench)).run(quick)
    result = {
        "name": name,
        "quick": quick,
        "numbers": measured["numbers"],
        "bars": measured["bars"],
        "seeds": measured["seeds"],
        "seconds": round(time.perf_counter() - started, 1),
        **surroundings(),
    }
    path = (results / "quick" if quick else results) / f"{name}.json"
    write_atomic(path, json.dumps(result, indent=2, sort_keys=True, allow_nan=False) + "\n")
    return result, path


def surroundings() -> dict[str, Any]:
    """What numbers depend on beside the code: versions, machine, commit. No host name, no path."""
    return {"versions": _versions(), "machine": _machine(), "commit": _commit()}


def _module(bench: Bench) -> str:
    return f"{__package__}.{bench.module}"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _machine() -> dict[str, Any]:
    import torch

    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _memory_gib() -> int | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (AttributeError, ValueError, OSError):
        return None  # Windows has no sysconf


def _commit() -> str:
    """The commit that was measured; ``+`` says that the working tree had changes on top."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return "unknown"
    return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _listing(benches: Mapping[str, Bench]) -> Table:
    table = Table("name", "what", "bar", title="Benchmarks")
    for name, bench in benches.items():
        table.add_row(name, bench.what, bench.bar)
    return table


def _outcome(name: str, bars: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("", "bar", "value", "wanted", title=name)
    for b in bars:
        value = "no number" if b["value"] is None else f"{b['value']:.4g}"
        table.add_row("holds" if b["holds"] else "FAILS", b["name"], value, f"{b['op']} {b['bar']:g}")
    return table


if __name__ == "__main__":
    sys.exit(main())
