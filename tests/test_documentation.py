"""README and docs: what they show is run, what they name exists, what is generated is current."""

import importlib.util
import re
import runpy
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from pipeline import __main__ as command_line
from pipeline import bias, data, distillation, models, pruning, similarities
from pipeline import config as configuration
from pipeline.plan import plan
from pipeline.registry import FOREIGN, Registry

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CHANGELOG.md"]
GENERATOR = runpy.run_path(str(ROOT / "docs" / "generate.py"))
REGISTRIES = {
    "docs/measures.md": (bias.MEASURES, similarities.SIMILARITIES),
    "docs/losses.md": (distillation.LOSSES,),
    "docs/pruning.md": (pruning.METHODS, pruning.SCHEDULES),
    "docs/configuration.md": (data.DATASETS,),
}


def text_of(page):
    return page.read_text(encoding="utf-8")


@dataclass(frozen=True)
class Block:
    """A fenced block. not_run: the reason, where its page gives one. needs: a module that it asks for."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str
    needs: str

    def __str__(self):
        return f"{self.page.stem}:{self.line}"


FENCE = re.compile(
    r"(?:<!-- not run: (?P<not_run>.+?) -->\n|<!-- needs: (?P<needs>[\w.]+) -->\n)?"
    r"```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


def blocks(language):
    found = []
    for page in PAGES:
        text = text_of(page)
        for match in FENCE.finditer(text):
            if match["language"] == language:
                line = text.count("\n", 0, match.start("text")) + 1
                found.append(Block(page, line, language, match["text"], match["not_run"] or "", match["needs"] or ""))
    return found


def skip_what_is_not_run(block):
    if block.not_run:
        pytest.skip(block.not_run)
    if block.needs and not exists(block.needs):
        pytest.skip(f"there is no {block.needs}")


def exists(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # what it would be a part of is no package
        return False


# What the snippets may take for granted


@pytest.fixture
def setting(tmp_path, monkeypatch):
    """A folder with prediction files, and the names that the snippets use."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 60)
    said = {name: generator.normal(size=(240, 4)) + 2 * np.eye(4)[labels] for name in ("dense", "dense2", "dense3")}
    said |= {name: generator.normal(size=(240, 4)) + 1.5 * np.eye(4)[labels] for name in ("pruned", "other")}
    for name, logits in said.items():
        np.savez(tmp_path / f"{name}.npz", labels=labels, logits=logits)
    groups = "\n".join(["group", *("left" if row % 2 else "right" for row in range(240))])
    (tmp_path / "groups.csv").write_text(groups + "\n")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    network = models.build(models.network("resnet8"), input_shape=(3, 16, 16), classes=4)
    images = torch.randn(8, 3, 16, 16)
    return {
        "np": np,
        "torch": torch,
        "labels": labels,
        **{f"{name}_logits": logits for name, logits in said.items()},
        **{f"{name}_predictions": logits.argmax(1) for name, logits in said.items()},
        "network": network,
        "model": network,
        "images": images,
        "test_loader": [(images, torch.arange(8) % 4), (images, torch.arange(8) % 4)],
        "features": generator.normal(size=(20, 5)),
        "other_features": generator.normal(size=(20, 7)),
    }


@pytest.fixture(autouse=True)
def _nothing_stays_registered():
    registries = [
        value for module in (bias, data, distillation, pruning, similarities) for value in _registries(module)
    ]
    if exists("pipeline.recovery"):
        registries += _registries(importlib.import_module("pipeline.recovery"))
    registries += _registries(models)
    before, foreign = [dict(each._classes) for each in registries], set(FOREIGN)
    yield
    for each, classes in zip(registries, before, strict=True):
        each._classes.clear()
        each._classes.update(classes)
    FOREIGN.clear()
    FOREIGN.update(foreign)


def _registries(module):
    return [value for value in vars(module).values() if isinstance(value, Registry)]


def snippets():
    """Blocks of Python; one that runs a study is slow."""
    return [
        pytest.param(block, id=str(block), marks=[pytest.mark.slow] if "study(" in block.text else [])
        for block in blocks("python")
    ]


@pytest.mark.parametrize("block", snippets())
def test_python_runs(block, setting):
    skip_what_is_not_run(block)
    exec(compile(block.text, str(block), "exec"), {**setting, "__name__": "snippet"})


def test_the_four_lines_save_what_the_network_says(setting):
    (block,) = [each for each in blocks("python") if each.page.name == "README.md"]
    assert len(block.text.splitlines()) == 4
    Path("dense.npz").unlink()
    exec(block.text, dict(setting))
    with np.load("dense.npz") as saved, torch.no_grad():
        once = setting["network"].eval()(setting["images"]).numpy()
        assert np.allclose(saved["logits"], np.concatenate([once, once]), atol=1e-5)
        assert saved["labels"].tolist() == 2 * [0, 1, 2, 3, 0, 1, 2, 3]


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_is_accepted(block, setting):
    """Each block in place of the same keys of the small study."""
    skip_what_is_not_run(block)
    if block.needs:  # what it names was registered by the blocks before it on its page
        for earlier in blocks("python"):
            if earlier.page == block.page and not earlier.not_run:
                exec(earlier.text, {**setting, "__name__": "snippet"})
    small = OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / "smoke.yaml"))
    Path("study.yaml").write_text(yaml.safe_dump({**small, **yaml.safe_load(block.text)}))
    study = configuration.load(Path("study.yaml"))
    if study.data.dataset.name != "image_folder":
        plan(study, Path("data"))


COMMANDS = [
    pytest.param(block, line.partition("#")[0].strip(), id=f"{block}:{number}")
    for block in blocks("sh")
    if not block.not_run
    for number, line in enumerate(block.text.splitlines())
]


@pytest.mark.parametrize("block,command", COMMANDS)
def test_commands_are_understood(block, command, setting, capsys):
    """make: what it would do. audit: done. A study: loaded and planned. The other verbs: parsed."""
    first, *words = shlex.split(command)
    if first == "make":
        subprocess.run([*shlex.split(command), "-n"], check=True, cwd=ROOT, capture_output=True)
        return
    assert [first, *words[:2]] == ["python", "-m", "pipeline"], "a command that no test knows how to run"
    verb, *options = words[2:]
    if "--help" in options:
        with pytest.raises(SystemExit, match="0"):
            command_line.main([verb, *options])
    elif verb == "audit":
        assert command_line.main([verb, *options, "--resamples", "100"]) == 0
        assert Path("result.html").exists() and "CEV" in capsys.readouterr().out
    else:
        chosen = command_line.parser().parse_args([verb, *options])
        if "overrides" in chosen:
            plan(configuration.load(chosen.config, chosen.overrides), Path("data"))


def test_every_block_says_what_it_is():
    for page in PAGES:
        for language in re.findall(r"^```(\w*)$", text_of(page), re.MULTILINE)[::2]:
            assert language in ("python", "sh", "yaml", ""), page
    plain = [block for block in blocks("") if re.search(r"^(python|make|pip) ", block.text, re.MULTILINE)]
    assert not plain, f"a command in a block without a language is not tested: {plain[0]}"


# What is named exists, and what exists is named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text_of(page))):
        assert "://" not in target, f"{target}: a link that only the network can check"
        name, _, place = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        if place:
            heads = re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(linked)), re.MULTILINE)
            assert place in {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}, target


@pytest.mark.parametrize("page", REGISTRIES)
def test_everything_registered_is_named(page):
    text = text_of(ROOT / page)
    assert not [name for registry in REGISTRIES[page] for name in registry if f"| `{name}` |" not in text]


def test_every_study_is_named():
    text = text_of(ROOT / "docs" / "findings.md")
    studies = {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    studies |= {path.name for path in (ROOT / "results" / "published").iterdir()}
    assert not [name for name in studies if name not in text]


def test_every_page_is_reached_from_the_readme():
    readme = text_of(ROOT / "README.md")
    assert not [page.name for page in PAGES[1:] if f"({page.relative_to(ROOT)})" not in readme]
    assert len(readme.splitlines()) <= 110


def test_named_files_exist():
    for page in PAGES:
        for name in re.findall(
            r"`((?:configs|benchmarks|tests|docs|results/published|pipeline)/[\w./]*)`", text_of(page)
        ):
            assert (ROOT / name).exists(), f"{page.name} names {name}"
        for name in re.findall(r"`(test_\w+\.py|faults\.py)`", text_of(page)):
            assert (ROOT / "tests" / name).exists(), f"{page.name} names {name}"


# What is generated


@pytest.mark.parametrize("page", [page for page in PAGES if "<!-- generated: " in text_of(page)], ids=lambda p: p.stem)
def test_generated_parts_are_current(page):
    assert GENERATOR["current"](text_of(page)) == text_of(page), "run make docs"


def test_every_generated_part_has_a_place():
    named = [name for page in PAGES for name in re.findall(r"<!-- generated: (.+?) -->", text_of(page))]
    assert sorted(named) == sorted(GENERATOR["BLOCKS"])


def test_checking_changes_nothing_and_tells(tmp_path, monkeypatch, capsys):
    main = GENERATOR["main"]
    monkeypatch.setitem(main.__globals__, "ROOT", tmp_path)
    page = tmp_path / "docs" / "losses.md"
    page.parent.mkdir()
    page.write_text("before\n<!-- generated: losses -->\nold\n<!-- end of losses -->\nafter\n")
    assert main(["--check"]) == 1 and "old" in page.read_text() and "losses.md" in capsys.readouterr().out
    assert main([]) == 0 and "`kd`" in page.read_text()
    assert page.read_text().startswith("before\n") and page.read_text().endswith("after\n")
    assert main(["--check"]) == 0


# Citation


def test_citation():
    cited = yaml.safe_load(text_of(ROOT / "CITATION.cff"))
    import pipeline

    assert cited["cff-version"] == "1.2.0" and cited["version"] == pipeline.__version__
    assert cited["title"] and cited["authors"] and len(cited["references"]) == 2
    assert ("license" in cited) == any(ROOT.glob("LICEN[SC]E*"))
