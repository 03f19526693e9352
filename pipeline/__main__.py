"""The command line: run, plan, show, audit, dashboard, gc, and one verb per stage."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pipeline import __version__
from pipeline.files import describe_os_error
from pipeline.registry import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.requirements import Requirement
    from pipeline.stage import Named, Stage
    from pipeline.store import Store

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


class Parser(argparse.ArgumentParser):
    """Tells a mistake on the command line as any other: ``error: ...`` first, exit status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n{self.format_usage()}")


def _path(text: str) -> Path:
    if not text:  # Path("") would be this folder
        raise argparse.ArgumentTypeError("empty; give a path")
    return Path(text)


def parser() -> argparse.ArgumentParser:
    from pipeline import auditing  # light: neither this module nor auditing loads torch

    top = Parser(
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
    auditing.add_requirements(verb, "cev_over_control<=1.5")
    verb.add_argument(
        "--cell",
        metavar="NAME",
        help="what --require is about, such as 'magnitude 0.9 + kd'; may hold * and ? (default: every cell that was "
        "pruned)",
    )
    verb = add("dashboard", "start TensorBoard on 127.0.0.1 for the results", "--port 6006")
    verb.add_argument(
        "--results", type=_path, default=Path("results"), help="folder of store and reports (default: %(default)s)"
    )
    verb.add_argument("--port", type=int, default=6006, help="port on 127.0.0.1 (default: %(default)s)")
    verb = add(
        "export", "write a stored network to one file", "results/store/recover/0123456789abcdef0123 --format onnx"
    )
    verb.add_argument("folder", type=_path, metavar="FOLDER", help="of a stage train, prune or recover, as in runs.csv")
    verb.add_argument("--format", choices=("onnx", "torchscript", "safetensors"), required=True, help="kind of file")
    verb.add_argument("--output", type=_path, default=None, help="file to write (default: the folder's name, here)")
    verb = add("gc", "list stored results that no configuration here names", "--yes")
    verb.add_argument(
        "--config",
        type=_path,
        nargs="+",
        default=None,
        help="YAML files that name results (default: configs/*.yaml; published reports always do)",
    )
    verb.add_argument(
        "--results", type=_path, default=Path("results"), help="folder of store and reports (default: %(default)s)"
    )
    verb.add_argument(
        "--data", type=_path, default=None, help="folder for downloads and caches (default: RESULTS/data)"
    )
    verb.add_argument("--yes", action="store_true", help="delete what is listed")
    verb = add(
        "audit", "compare any two models' predictions class by class", "--reference dense.npz --candidate pruned.npz"
    )
    auditing.add_arguments(verb)
    return top


def _study_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--config", type=_path, default=DEFAULT_CONFIG, help="YAML file of the study (default: %(default)s)"
    )
    verb.add_argument(
        "--results", type=_path, default=Path("results"), help="folder of store and reports (default: %(default)s)"
    )
    verb.add_argument(
        "--data", type=_path, default=None, help="folder for downloads and caches (default: RESULTS/data)"
    )
    verb.add_argument("overrides", nargs="*", metavar="key=value", help="settings in place of the file's")


def main(arguments: list[str] | None = None) -> int:
    chosen = argparse.Namespace()
    try:
        chosen = parser().parse_args(arguments)
        if chosen.verb == "audit":
            from pipeline import auditing

            return auditing.main(chosen)
        if chosen.verb == "export":
            return export(chosen)
        if chosen.verb == "dashboard":
            return dashboard(chosen)
        if chosen.verb == "gc":
            return collect_garbage(chosen)
        return study(chosen)
    except UserError as error:
        # What a file or an argument holds is shown and not sent: no escape sequence reaches a terminal.
        shown = "".join(part if part.isprintable() or part == "\n" else ascii(part)[1:-1] for part in str(error))
        print(f"error: {shown}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 3 if getattr(chosen, "require", None) else 0  # what nobody could read has not passed
    except OSError as error:
        print(f"error: {describe_os_error(error, getattr(chosen, 'results', Path()))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130


def study(chosen: argparse.Namespace) -> int:
    """The verbs that work on a configured study."""
    from rich.console import Console

    from pipeline import plan_notes
    from pipeline.store import Store

    required = required_of(chosen) if chosen.verb == "show" else []
    console = Console()
    data_root = chosen.data or chosen.results / "data"
    store = Store(chosen.results)
    noted_at = plan_notes.place(chosen.results, chosen.config, chosen.overrides)
    # Only where something is to be computed is all that computes worth loading.
    if (
        noted_at
        and chosen.verb in ("run", "report", "show", "plan")
        and (noted := plan_notes.recall(noted_at, chosen.config, chosen.overrides, data_root))
    ):
        if chosen.verb in ("show", "plan"):
            return look(chosen, console, store, noted.study, noted.stages, required)
        if not missing(noted.stages[-1:], store):
            console.print(f"{noted.study}: nothing to compute, all results exist", highlight=False)
            return finish(console, store, noted.study, noted.report)

    from pipeline import executors, yamlfile

    content = yamlfile.load(chosen.config, chosen.overrides)  # what is no YAML is refused before anything is loaded
    if chosen.verb not in ("show", "plan") and "workers=1" not in chosen.overrides:
        executors.start_server()
    from pipeline import config, plan
    from pipeline.progress import Display
    from pipeline.stage import in_order
    from pipeline.store import StageBroken

    settings = config.parse(content)
    planned = plan.plan(settings, data_root)
    stages = in_order([planned.report])
    if chosen.verb in ("show", "plan"):
        return look(chosen, console, store, settings.study, stages, required)
    targets = planned.targets(chosen.verb)
    if not executors.needed(targets, store):
        console.print(f"{settings.study}: nothing to compute, all results exist", highlight=False)
        if noted_at and os.access(chosen.results, os.W_OK):
            plan_notes.note(store, noted_at, settings, stages)
        return finish(console, store, settings.study, planned.report) if chosen.verb in ("report", "run") else 0
    with store.in_use():
        todo = executors.needed(targets, store)  # again, now that nobody deletes anything
        for stage in todo:
            stage.check(data_root)
        console.print(f"{settings.study}: {len(todo)} stages to compute", highlight=False)
        if noted_at:
            plan_notes.note(store, noted_at, settings, stages)
        execution = executors.Execution(chosen.results, data_root, settings.device, settings.workers)
        outcome = executors.run_local(todo, execution, Display(console, len(todo)))
        if not outcome.failed and chosen.verb in ("report", "run"):
            return finish(console, store, settings.study, planned.report)
    if outcome.failed:
        for stage, reason in outcome.failed:
            print(f"error: {stage.label()}: {reason}", file=sys.stderr)
        if outcome.skipped:
            print(f"{len(outcome.skipped)} stages that need them were not run; finished ones are kept", file=sys.stderr)
        return 1 if any(isinstance(reason, StageBroken) for _, reason in outcome.failed) else 2
    return 0


def missing(targets: Sequence[Named], store: Store) -> bool:
    """Whether something has to be computed; also where the store cannot tell, so that whoever computes says why."""
    from pipeline.executors import needed

    try:
        return bool(needed(targets, store))
    except UserError:
        return True


def finish(console: Console, store: Store, study: str, report: Named) -> int:
    """Publishes a finished report and shows it."""
    from pipeline import publication

    published = publication.publish(store, report, study, _line(console))
    publication.show(published, console, as_json=False)
    console.print(f"report     {published / 'index.html'}", highlight=False, soft_wrap=True)
    console.print("dashboard  make dashboard, or python -m pipeline dashboard", highlight=False)
    return 0


def required_of(chosen: argparse.Namespace) -> list[Requirement]:
    """What the verb show is given with --require; refused before anything is looked at."""
    if chosen.cell is not None and not chosen.require:
        raise UserError("--cell: says what --require is about; give a requirement, such as --require 'accuracy>=0.9'")
    if not chosen.require:
        return []
    from pipeline import requirements
    from pipeline.bias import MEASURES

    return requirements.read(chosen.require, MEASURES)


def look(
    chosen: argparse.Namespace,
    console: Console,
    store: Store,
    study: str,
    stages: Sequence[Named],
    required: Sequence[Requirement],
) -> int:
    """The verbs that compute nothing: plan and show."""
    from pipeline import publication

    if chosen.verb == "show":
        published = publication.report_folder(store.root, study)
        summary, gate = publication.read_summary(published), None
        current = publication.read_listing(published)["key"] == stages[-1].key
        other = "this report was made with other settings than those given now; run makes theirs"
        if required:
            from pipeline import requirements
            from pipeline.table import read_long

            if not current:
                raise UserError(f"{published}: {other}, and nothing can be required of it")
            gate = requirements.of_study(required, summary, read_long(published / "rows.csv"), chosen.cell)
        publication.show(published, console, as_json=chosen.json, gate=gate)
        if not current:
            print(other, file=sys.stderr)
        return gate.status if gate else 0
    lines = [_plan_line(stage, store) for stage in stages]
    if chosen.json:
        print(json.dumps(lines, indent=1))
        return 0
    say = _line(console)
    for line in lines:
        say(f"{line['state']:8}{line['key']}  {line['label']}")
        if line["failure"]:
            say(f"        {line['failure']}")
    states = [line["state"] for line in lines]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    say(f"{len(stages)} stages: {counts}; folders: {chosen.results}/store/<stage>/<key>")
    return 0


def _line(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)


def _plan_line(stage: Named, store: Store) -> dict[str, object]:
    state = store.state(stage)
    return {
        "stage": stage.kind,
        "key": stage.key,
        "label": stage.label(),
        "state": state,
        "folder": str(store.folder(stage)),
        "failure": store.failure(stage) if state == "failed" else "",
    }


def collect_garbage(chosen: argparse.Namespace) -> int:
    """Lists, and with --yes deletes, what no configuration here and no published report names."""
    from pipeline import config, garbage, plan, publication
    from pipeline.store import Store

    if not (chosen.results / "store").is_dir():
        raise UserError(f"{chosen.results}: holds no store; give the folder with --results")
    store = Store(chosen.results)
    # Before anything is read, since what is named may change; to look is allowed at any time.
    alone = store.lock(store.computing, _refuse_while_computing) if chosen.yes else contextlib.nullcontext()
    with alone:
        own = chosen.config if chosen.config is not None else sorted(Path("configs").glob("*.yaml"))
        published = garbage.published(store)
        of_reports = sorted((chosen.results / "reports").glob("*/config.yaml"))
        if not own and not published and not of_reports:
            raise UserError(
                "no configuration here, so everything would go; name some with --config, or delete the folder"
            )
        targets: list[Stage] = []
        for path in [*own, *of_reports]:
            try:
                targets.append(plan.plan(config.load(path), chosen.data or chosen.results / "data").report)
            except UserError as error:
                if path in of_reports and path.with_name(publication.LISTING).exists():
                    continue  # of an earlier version, say; its key names what it rests on
                reason = "; ".join(str(error).splitlines())
                raise UserError(
                    f"{path}: what it names is not known ({reason}); mend it, or move it away if its results may go"
                ) from None
        rows = garbage.unnamed(store, targets, published)
        for row in rows:
            print(f"{row.size / 1e6:10.1f} MB  {row.kind}/{row.key}  {row.label}")
        total = sum(row.size for row in rows) / 1e6
        print(
            f"{len(rows)} results, {total:,.1f} MB, that none of {len(own)} configurations and {len(published)} "
            "published reports names"
        )
        if rows and not chosen.yes:
            print("nothing was deleted; --yes deletes them")
        elif rows:
            for row in rows:
                garbage.delete(store, row)
            print(f"deleted {len(rows)}")
    return 0


def _refuse_while_computing() -> None:
    raise UserError("gc: a study is being computed in this folder, and what it needs may be listed; wait for its end")


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
    status = main()
    if status:
        # The threads of a pool whose workers were ended may wait for a lock that one of them took along.
        rescue = threading.Timer(5, os._exit, (status,))
        rescue.daemon = True
        rescue.start()
    sys.exit(status)
