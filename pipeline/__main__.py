"""The command line: run, plan, show, audit, dashboard, and one verb per stage."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from pipeline import __version__
from pipeline.registry import UserError

STAGE_VERBS = {
    "train": "train the dense networks",
    "prune": "prune them",
    "recover": "recover the pruned networks",
    "predict": "predict the test split",
    "score": "measure the bias per class: rates, CEV, SDE, and everything beside them",
    "latency": "time pruned networks against their dense ones",
    "similarity": "measure similarity to the dense networks",
    "correlate": "correlate similarity and bias",
    "report": "write tables, figures and the page",
    "run": "make everything and show the result",
}
DEFAULT_CONFIG = Path("configs/mnist5k.yaml")


def parser() -> argparse.ArgumentParser:
    from pipeline import audit  # light: neither this module nor audit loads torch

    top = argparse.ArgumentParser(
        prog="python -m pipeline",
        description="Train, prune, recover and audit image classifiers: what did compression do to each class?",
    )
    top.add_argument("--version", action="version", version=__version__)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add(name: str, text: str, example: str) -> argparse.ArgumentParser:
        return verbs.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"example: python -m pipeline {name} {example}",
        )

    for name, text in STAGE_VERBS.items():
        verb = add(name, text, "--config configs/mnist5k.yaml sparsities=[0.9] seeds=3")
        _study_arguments(verb)
    verb = add("plan", "list the stages with key, state and folder", "--config configs/mnist5k.yaml --json")
    _study_arguments(verb)
    verb.add_argument("--json", action="store_true", help="for machines")
    verb = add("show", "print the result table of the last report", "--config configs/mnist5k.yaml")
    _study_arguments(verb)
    verb.add_argument("--json", action="store_true", help="for machines")
    verb = add("dashboard", "start TensorBoard on 127.0.0.1 for the results", "--port 6006")
    verb.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of store and reports (default: %(default)s)"
    )
    verb.add_argument("--port", type=int, default=6006, help="port on 127.0.0.1 (default: %(default)s)")
    verb = add(
        "export", "write a stored network to one file", "results/store/recover/0123456789abcdef0123 --format onnx"
    )
    verb.add_argument("folder", type=Path, metavar="FOLDER", help="of a stage train, prune or recover, as in runs.csv")
    verb.add_argument("--format", choices=("onnx", "torchscript", "safetensors"), required=True, help="kind of file")
    verb.add_argument("--output", type=Path, default=None, help="file to write (default: the folder's name, here)")
    verb = add(
        "audit", "compare any two models' predictions class by class", "--reference dense.npz --candidate pruned.npz"
    )
    audit.add_arguments(verb)
    return top


def _study_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, help="YAML file of the study (default: %(default)s)"
    )
    verb.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of store and reports (default: %(default)s)"
    )
    verb.add_argument("--data", type=Path, default=None, help="folder for downloads and caches (default: RESULTS/data)")
    verb.add_argument("overrides", nargs="*", metavar="key=value", help="settings in place of the file's")


def main(arguments: list[str] | None = None) -> int:
    chosen = parser().parse_args(arguments)
    try:
        if chosen.verb == "audit":
            from pipeline import audit

            return audit.main(chosen)
        if chosen.verb == "export":
            return export(chosen)
        if chosen.verb == "dashboard":
            return dashboard(chosen)
        return study(chosen)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        from pipeline.stage import describe_os_error

        print(f"error: {describe_os_error(error, getattr(chosen, 'results', Path()))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130


def study(chosen: argparse.Namespace) -> int:
    """The verbs that work on a configured study."""
    from rich.console import Console

    from pipeline import executors, experiment
    from pipeline.stage import StageBroken, Store, walk

    console = Console()
    settings = experiment.load(chosen.config, chosen.overrides)
    data_root = chosen.data or chosen.results / "data"
    published = chosen.results / "reports" / settings.study
    planned = experiment.plan(settings, data_root)
    if chosen.verb == "show":
        shown = show(published, console, as_json=chosen.json)
        if read_listing(published / "report.json")["key"] != planned.report.key:
            print("this report was made with other settings than those given now; run makes theirs", file=sys.stderr)
        return shown
    store = Store(chosen.results)
    if chosen.verb == "plan":
        stages = walk(planned.targets("run"))
        if chosen.json:
            print(json.dumps([_plan_line(stage, store) for stage in stages], indent=1))
            return 0
        for stage in stages:
            line = _plan_line(stage, store)
            console.print(f"{line['state']:8}{line['key']}  {line['label']}", markup=False, highlight=False)
            if line["failure"]:
                console.print(f"        {line['failure']}", markup=False, highlight=False)
        states = [store.state(stage) for stage in stages]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        console.print(f"{len(stages)} stages: {counts}; folders: {chosen.results}/store/<stage>/<key>", highlight=False)
        return 0
    targets = planned.targets(chosen.verb)
    execution = executors.Execution(chosen.results, data_root, settings.device, settings.workers, settings.threads)
    todo, _ = executors.needed(targets, store)
    if todo:
        require_writable(chosen.results)
        experiment.check_before_training(todo, data_root)
        console.print(f"{settings.study}: {len(todo)} stages to compute", highlight=False)
    outcome = executors.run_local(targets, execution, console)
    if outcome.failed:
        for stage, reason in outcome.failed:
            print(f"error: {stage.label()}: {reason}", file=sys.stderr)
        if outcome.skipped:
            print(f"{len(outcome.skipped)} stages that need them were not run; finished ones are kept", file=sys.stderr)
        return 1 if any(isinstance(reason, StageBroken) for _, reason in outcome.failed) else 2
    if not outcome.computed:
        console.print(f"{settings.study}: nothing to compute, all results exist", highlight=False)
    if chosen.verb in ("report", "run"):
        publish(store, planned.report, published, chosen.results / "tensorboard" / settings.study)
        show(published, console, as_json=False)
        console.print(f"report     {published / 'index.html'}", highlight=False, soft_wrap=True)
        console.print("dashboard  make dashboard, or python -m pipeline dashboard", highlight=False)
    return 0


def _plan_line(stage, store) -> dict[str, object]:
    state = store.state(stage)
    return {
        "stage": stage.kind,
        "key": stage.key,
        "label": stage.label(),
        "state": state,
        "folder": str(store.folder(stage)),
        "failure": store.failure(stage) if state == "failed" else "",
    }


def require_writable(results: Path) -> None:
    """Raises UserError before any time is spent where the results could not be kept."""
    try:
        results.mkdir(parents=True, exist_ok=True)
        probe = results / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{results}: cannot be written to ({error.strerror}); choose another folder with RESULTS=... (--results)"
        ) from None


def publish(store, report, published: Path, tensorboard: Path) -> None:
    """Copies the report out of the store to where people look, unless it already is there.

    File by file, each written aside and renamed, the list of them last: whatever else a person keeps there stays, and
    only files of an earlier report are removed.
    """
    from pipeline.stage import write_atomically

    listing = published / "report.json"
    with store.lock(store.root / "locks" / f"report-{published.name}"):
        before, contents = read_listing(listing), store.contents(report)
        if before["contents"] == contents and all((published.parent / name).exists() for name in before["files"]):
            return
        source, files = store.open(report), []
        for path in sorted(path for path in source.rglob("*") if path.is_file() and path.name != "manifest.json"):
            part = path.relative_to(source)
            inside = part.parts[0] == "tensorboard"
            target = tensorboard / part.relative_to("tensorboard") if inside else published / part
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = target.with_name(f".{target.name}.{os.getpid()}.aside")
            shutil.copyfile(path, aside)
            os.replace(aside, target)
            files.append(os.path.relpath(target, published.parent))
        for name in set(before["files"]) - set(files):
            (published.parent / name).unlink(missing_ok=True)
        written = {"key": report.key, "contents": contents, "files": files}
        write_atomically(listing, json.dumps(written, indent=1) + "\n")


def read_listing(path: Path) -> dict[str, object]:
    """Key, contents and files of the report that was published last; empty where there is none that can be read."""
    try:
        content = json.loads(path.read_text())
        names = {name: str(content.get(name, "")) for name in ("key", "contents")}
        return {**names, "files": [str(name) for name in content["files"]]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {"key": "", "contents": "", "files": []}


def show(published: Path, console, *, as_json: bool) -> int:
    """Prints the table and the sentences of a published report."""
    from pipeline import report

    try:
        summary = json.loads((published / "summary.json").read_text())
    except (OSError, ValueError) as error:
        reason = "there is none yet" if isinstance(error, FileNotFoundError) else str(error)
        raise UserError(f"{published}: no report to show ({reason}); make it with the verb run") from None
    if as_json:
        print(json.dumps(summary, indent=1))
        return 0
    table = report.terminal_table(summary)
    if not console.is_terminal:
        console.width = max(console.width, 180)  # a log file has no edge
    console.print(table)
    for sentence in summary["sentences"]:
        console.print(sentence, highlight=False, markup=False)
    return 0


def export(chosen: argparse.Namespace) -> int:
    from pipeline import export

    output = chosen.output or Path(chosen.folder.resolve().name + export.FORMATS[chosen.format])
    if not output.parent.is_dir() or output.is_dir():
        raise UserError(f"--output {output}: {'is a folder' if output.is_dir() else 'its folder does not exist'}")
    error = export.export(chosen.folder, output, chosen.format)
    print(f"{output}: {output.stat().st_size:,} bytes, logits within {error:.1g} of the stored network's")
    return 0


def dashboard(chosen: argparse.Namespace) -> int:
    folder = chosen.results / "tensorboard"
    if not folder.is_dir():
        raise UserError(f"{folder}: no results to show yet; make some with the verb run")
    print(f"TensorBoard on http://127.0.0.1:{chosen.port} (stop with Ctrl-C)", flush=True)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1"]
    return subprocess.call([*command, "--port", str(chosen.port)])


if __name__ == "__main__":
    sys.exit(main())
