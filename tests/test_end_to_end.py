"""The command line as a person uses it, on the small study: results, reuse, kill and resume, two at once, mistakes."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def command(*arguments, results):
    return [
        sys.executable,
        "-m",
        "pipeline",
        *arguments[:1],
        "--config",
        "configs/smoke.yaml",
        "--results",
        str(results),
        *arguments[1:],
    ]


def pipeline(*arguments, results, status=0):
    done = subprocess.run(command(*arguments, results=results), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    return results, pipeline("run", "threads=1", results=results).stdout


def weights(results):
    return {path.parent.name: path.read_bytes() for path in (results / "store").rglob("weights.safetensors")}


def test_report(finished):
    results, output = finished
    report = results / "reports" / "smoke"
    with (report / "runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert list(runs[0])[:17] == [
        *("dataset", "model", "seed", "pruning", "sparsity_asked", "sparsity_reached", "recovery"),
        *("accuracy", "cev", "sde", "cka", "parameters", "bytes", "macs_ratio", "latency_b1", "latency_b128", "folder"),
    ]
    assert {"cev_corrected", "churn", "worst_recall"} <= set(list(runs[0])[17:]), "every other measure follows"
    assert len(runs) == 2 * (1 + 1 + 2)
    masked = [run for run in runs if run["pruning"] == "magnitude"]
    assert all(abs(float(run["sparsity_reached"]) - 0.8) < 0.005 for run in masked) and len(masked) == 4
    assert all((results / run["folder"] / "weights.safetensors").exists() for run in runs)
    for name in (
        "per_class.csv",
        "measures.csv",
        "correlation.csv",
        "bias.png",
        "classes.png",
        "similarity.png",
        "config.yaml",
    ):
        assert (report / name).stat().st_size > 100, name
    page = (report / "index.html").read_text()
    assert "With two seeds there is no floor" in page and "http" not in page.replace("http-equiv", "")
    assert "magnitude" in output and "floor" in output and str(report / "index.html") in output


def test_numbers_come_from_stored_predictions(finished):
    """Accuracy and CEV of the table again, from the predictions on disk and a loop over classes."""
    import numpy as np

    results, _ = finished
    manifests = {}
    for path in (results / "store" / "predict").glob("*/manifest.json"):
        manifests[json.loads(path.read_text())["label"]] = path.parent
    read = {label: np.load(folder / "predictions.npz") for label, folder in manifests.items()}
    dense, kd = (read[f"predict · {name} · seed 1"] for name in ("train resnet8", "recover kd · magnitude 0.8"))
    changes = []
    for label in range(4):
        rates = []
        for arrays in (dense, kd):
            truth, said = arrays["labels"] == label, arrays["logits"].argmax(1) == label
            rates.append(((said & ~truth).sum() / (~truth).sum(), (~said & truth).sum() / truth.sum()))
        if rates[0][0] and rates[0][1]:
            changes.append([100 * (after - before) / before for before, after in zip(*rates, strict=True)])
    changes = np.array(changes)
    cev = ((changes - changes.mean(0)) ** 2).sum() / (2 * len(changes))
    with (results / "reports" / "smoke" / "runs.csv").open() as file:
        row = next(
            r for r in csv.DictReader(file) if (r["seed"], r["pruning"], r["recovery"]) == ("1", "magnitude", "kd")
        )
    assert float(row["cev"]) == pytest.approx(cev)
    assert float(row["accuracy"]) == pytest.approx((kd["logits"].argmax(1) == kd["labels"]).mean())


def test_what_measures_time_runs_alone(finished):
    results, output = finished
    spans = []
    for path in (results / "store").rglob("manifest.json"):
        seconds, end = json.loads(path.read_text())["seconds"], path.stat().st_mtime
        spans.append((path.parts[-3], end - seconds, end))
    measured = [span for span in spans if span[0] == "latency"]
    assert len(measured) == 1, "one seed of each cell, shared by its recoveries"
    for _, start, end in measured:
        assert sum(other[1] < end - 0.01 and start + 0.01 < other[2] for other in spans) == 1, "itself alone"
    with (results / "reports" / "smoke" / "runs.csv").open() as file:
        runs = [run for run in csv.DictReader(file) if run["pruning"] == "magnitude"]
    assert all((float(run["latency_b128"]) > 0) if run["seed"] == "0" else run["latency_b128"] == "" for run in runs)
    assert "without the first convolution and the classifier" in output and "A mask saves no time" in output


def test_again_computes_nothing(finished):
    results, _ = finished
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()}
    assert "nothing to compute" in pipeline("run", "threads=1", results=results).stdout
    assert before == {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()}
    assert "nothing to compute" in pipeline("run", results=results).stdout, "the same in other words"
    after = {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()}
    assert {path.parent for path in after.keys() - before.keys()} <= {
        results / "plans"
    } and before.items() <= after.items()


def test_plan_and_show_for_machines(finished):
    results, _ = finished
    lines = json.loads(pipeline("plan", "--json", results=results).stdout)
    assert {line["state"] for line in lines} == {"done"} and all(Path(line["folder"]).is_dir() for line in lines)
    shown = json.loads(pipeline("show", "--json", results=results).stdout)
    assert shown["study"] == "smoke" and shown["floor"]["cev"]["pairs"] == 2
    new = json.loads(pipeline("plan", "--json", "sparsities=[0.5,0.8]", results=results).stdout)
    todo = [line for line in new if line["state"] == "todo"]
    branch = {"prune", "recover", "latency", "predict", "score", "similarity", "correlate", "report"}
    assert {line["stage"] for line in todo} == branch
    assert not [line for line in todo if line["stage"] == "prune" and " 0.5 " not in line["label"]]


def test_dashboard_has_readable_names(finished):
    results, _ = finished
    runs = {
        str(path.parent.relative_to(results / "tensorboard")) for path in (results / "tensorboard").rglob("events*")
    }
    assert "smoke/magnitude 0.8/kd/seed0" in runs and "smoke/dense/none/seed1" in runs


def test_killed_and_started_again_gives_the_same_bytes(finished, tmp_path):
    results, _ = finished
    running = subprocess.Popen(
        command("train", "workers=1", "threads=1", results=tmp_path),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "store").rglob("checkpoint.safetensors")):
        assert running.poll() is None and time.monotonic() < deadline, "training ended before it could be killed"
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert list((tmp_path / "store").rglob("*.work")), "nothing was under way"
    assert any(line["state"] == "partial" for line in json.loads(pipeline("plan", "--json", results=tmp_path).stdout))
    pipeline("train", "threads=1", results=tmp_path)
    whole = weights(results)
    again = weights(tmp_path)
    assert len(again) == 2 and all(whole[key] == value for key, value in again.items())


def test_two_at_the_same_time_compute_each_stage_once(tmp_path):
    both = [
        subprocess.Popen(
            command("prune", "workers=1", "threads=1", results=tmp_path), cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    computed = [
        line for output in outputs for line in output.splitlines() if line.startswith("[") and line.endswith(" s")
    ]
    assert len(computed) == 4, outputs


def test_control_c_stops_every_worker_at_once(tmp_path):
    running = subprocess.Popen(
        command("train", "train.epochs=2000", "workers=2", "threads=1", results=tmp_path),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "store").rglob("checkpoint.safetensors")):
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)  # to the parent alone, as a job scheduler would
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130 and "goes on from here" in said and "Traceback" not in said


def test_what_a_person_keeps_beside_a_report_stays(finished, tmp_path):
    results = tmp_path / "copy"
    shutil.copytree(finished[0], results)
    published = results / "reports" / "smoke"
    (published / "notes.txt").write_text("mine")
    (published / "runs.csv").unlink()
    pipeline("report", results=results)
    assert (published / "notes.txt").read_text() == "mine" and (published / "runs.csv").exists()


def test_damaged_result_is_named_and_the_rest_kept(finished, tmp_path):
    results = tmp_path / "copy"
    shutil.copytree(finished[0], results)
    for path in (results / "store" / "score").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(next((results / "store" / "report").glob("*")).parent)
    damaged = next((results / "store" / "predict").glob("*/predictions.npz"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    done = pipeline("run", results=results, status=2)
    assert f"{damaged}: does not match its checksum" in done.stderr and "Traceback" not in done.stderr
    shutil.rmtree(damaged.parent)
    pipeline("run", results=results)


def test_a_report_makes_again_what_it_reads_and_somebody_removed(finished, tmp_path):
    results = tmp_path / "copy"
    shutil.copytree(finished[0], results)
    for kind in ("predict", "report"):
        shutil.rmtree(results / "store" / kind)
    published = next((results / "reports").glob("*/runs.csv"))
    whole = published.read_bytes()
    # As if the report that people see had been made from other results under the same key.
    published.write_bytes(b"")
    listing = published.with_name("report.json")
    listing.write_text(listing.read_text().replace('"contents": "', '"contents": "0'))
    pipeline("run", results=results)
    assert published.read_bytes() == whole


@pytest.mark.parametrize(
    "override,message",
    [("sparsity=0.9", "sparsity: unknown key"), ("sparsities=1.2", "outside [0, 1)"), ("recoveries=[kx]", "kx")],
)
def test_mistakes_end_with_one_line_and_nothing_written(tmp_path, override, message):
    results = tmp_path / "results"
    done = pipeline("run", override, results=results, status=2)
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not results.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_results(tmp_path):
    tmp_path.chmod(0o500)
    assert "cannot be written to" in pipeline("run", results=tmp_path / "results", status=2).stderr


def test_results_in_the_way_of_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    done = pipeline("run", results=tmp_path / "file", status=2)
    assert "file" in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("verb", ["run", "plan", "show", "dashboard", "audit", "train"])
def test_help_shows_defaults_and_an_example(verb):
    done = subprocess.run([sys.executable, "-m", "pipeline", verb, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "example:" in done.stdout
