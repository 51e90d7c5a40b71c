"""Kill a training and a sweep at random and compare what they end with to a run that nobody disturbed.

    python tests/chaos/kill.py --kills 20 --seed 0 --out report.json

Everything happens in copies of the project in a temporary folder, on the digits, with processes that this script
started. Exit code 0: the same bytes, nothing left over. Takes about 20 minutes on two quiet cores.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import chaos_project
import processes
from disturbed import Disturbed, Kill
from e2e_project import twin
from schedule import plan

GRACE_S = 30  # after the end of `dvc`, for processes that are on their way out


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    processes.adopt_orphans()
    root = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        report = chaos(root, args.kills, args.seed, args.families.split(","), args.epochs, args.patience_s)
        if report["defects"]:
            args.keep = True
    finally:
        processes.end_all()
        if not args.keep:
            shutil.rmtree(root, ignore_errors=True)
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(table(report))
    return 1 if report["defects"] else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--families", default="vae,cvae,vqvae")
    parser.add_argument("--epochs", type=int, help="of each training; default: as many as 20 kills need")
    parser.add_argument("--patience-s", type=float, default=240, help="without progress: it hangs, and is ended")
    parser.add_argument("--out", type=Path, help="write the report there, as JSON")
    parser.add_argument("--keep", action="store_true", help="leave the temporary folder")
    return parser.parse_args(argv)


def chaos(
    root: Path, kills: int, seed: int, families: list[str], epochs: int | None, patience_s: float
) -> dict[str, Any]:
    """Both runs and their comparison."""
    say(f"folder {root}; making the data")
    calm = chaos_project.make(root / "calm", families, epochs)
    wild = twin(calm, root / "wild")
    ray = root / "r"  # short: Ray's sockets lie there
    say("the run that nobody disturbs")
    undisturbed = Disturbed(calm, families, [], {}, ray, patience_s)
    undisturbed.run()
    if undisturbed.defects:
        raise SystemExit("\n".join(["the undisturbed run failed:", *undisturbed.defects, f"see {undisturbed.log}"]))
    say(f"done in {undisturbed.seconds:.0f} s; the same with {kills} kills")
    disturbed = Disturbed(wild, families, plan(kills, seed, families), undisturbed.totals, ray, patience_s)
    disturbed.run()
    expected, got = chaos_project.outputs(calm), chaos_project.outputs(wild)
    different = chaos_project.differences(expected, got)
    orphans, leftovers = lingering(), chaos_project.leftovers(wild)
    defects = disturbed.defects + [f"{name}: not the bytes of the undisturbed run" for name in different]
    defects += [f"still running after {GRACE_S} s: {orphan}" for orphan in orphans]
    defects += [f"left over in the store: {name}" for name in leftovers]
    if chaos_project.steps(calm) != chaos_project.steps(wild):
        defects.append(f"the stores differ: {chaos_project.steps(calm)} and {chaos_project.steps(wild)}")
    return {
        "seed": seed,
        "families": families,
        "compared": sorted(expected),
        "identical": not different,
        "steps": {f"{stage}@{family}": total for (stage, family), total in undisturbed.totals.items()},
        "undisturbed_s": round(undisturbed.seconds, 1),
        "disturbed_s": round(disturbed.seconds, 1),
        "starts_of_dvc": disturbed.starts,
        "kills": [asdict(kill) for kill in disturbed.kills],
        "not_done": [asdict(planned) for planned in disturbed.planned],
        "by_victim": Counter(kill.victim for kill in disturbed.kills),
        "defects": defects,
    }


def lingering() -> list[str]:
    """Command lines of our processes that do not end by themselves."""
    processes.wait(lambda: not processes.ours(), GRACE_S, every=0.5)
    return [f"{process.pid} {processes.command(process)[:120]!r}" for process in processes.ours()]


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"{'no':>3} {'stage':<12} {'victim':<11} {'at step':>14} {'resumed':>8}  what happened"]
    lines += [line(Kill(**kill)) for kill in report["kills"]]
    victims = ", ".join(f"{count} {victim}" for victim, count in sorted(report["by_victim"].items()))
    same = "identical" if report["identical"] else "DIFFERENT"
    lines += [
        f"{len(report['kills'])} kills ({victims}); {report['starts_of_dvc']} starts of dvc repro",
        f"{len(report['compared'])} files of outputs {same}; "
        f"{report['undisturbed_s']} s undisturbed, {report['disturbed_s']} s disturbed",
    ]
    lines += [f"not done: {planned}" for planned in report["not_done"]]
    lines += [f"DEFECT: {defect}" for defect in report["defects"]]
    return "\n".join(lines)


def line(kill: Kill) -> str:
    stage, step = f"{kill.stage}@{kill.family}", f"{kill.step} of {kill.of}"
    resumed = "-" if kill.resumed_s is None else f"{kill.resumed_s:.1f} s"
    return f"{kill.number:>3} {stage:<12} {kill.victim:<11} {step:>14} {resumed:>8}  {'; '.join(kill.after)}"


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
