import random

import numpy as np
import pytest
import torch
from PIL import Image

from dasvit import Augmentation, ImageSet
from dasvit.data import images
from dasvit.data.images import FileImages, decode_once, distort, resize
from dasvit.data.sizes import pair


def numbered(n=23, size=4):
    """Images whose pixels all carry the image's number."""
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 1, size, size).contiguous()
    return ImageSet(images, torch.arange(n), tuple(map(str, range(n))), (0.0,), (1 / 255,))


def numbers(batches):
    return [x[:, 0, 0, 0].round().int().tolist() for x, _ in batches]


def test_plain_batches_are_everything_in_order():
    got = numbers(numbered().batches(10, image_size=4))
    assert got == [list(range(10)), list(range(10, 20)), [20, 21, 22]]


def test_images_keep_their_labels_and_are_normalised():
    for x, y in numbered().batches(5, image_size=4, seed=1):
        assert torch.equal(x[:, 0, 0, 0].round().long(), y)
    images = ImageSet(torch.full((2, 1, 2, 2), 51, dtype=torch.uint8), torch.zeros(2).long(), ("a",), (0.1,), (0.5,))
    ((x, _),) = images.batches(2, image_size=2)
    torch.testing.assert_close(x, torch.full((2, 1, 2, 2), (0.2 - 0.1) / 0.5))


def test_an_epoch_sees_every_image_at_most_once_and_epochs_differ():
    first, second = (numbers(numbered().batches(5, image_size=4, seed=0, epoch=e)) for e in (0, 1))
    assert len(first) == len(second) == 4
    assert len({i for batch in first for i in batch}) == 20
    assert first != second
    assert first == numbers(numbered().batches(5, image_size=4, seed=0, epoch=0))


def test_an_epoch_goes_on_where_it_stopped():
    settings = {"image_size": 8, "seed": 3, "epoch": 2, "augmentation": Augmentation(True, 0.25, 0.5)}
    whole = list(numbered().batches(4, **settings))
    rest = list(numbered().batches(4, start=2, **settings))
    assert len(rest) == len(whole) - 2
    for (x, y), (x_again, y_again) in zip(whole[2:], rest, strict=True):
        assert torch.equal(x, x_again)
        assert torch.equal(y, y_again)


def test_global_randomness_is_neither_used_nor_touched():
    settings = {"image_size": 4, "seed": 3, "augmentation": Augmentation(flip=True, shift=0.25)}
    torch.manual_seed(1)
    one = [x for x, _ in numbered().batches(4, **settings)]
    state = torch.get_rng_state()
    torch.manual_seed(2)
    two = [x for x, _ in numbered().batches(4, **settings)]
    assert all(map(torch.equal, one, two))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("n", [10, 11])
def test_halves_are_disjoint_and_complete(n):
    first, second = numbered(n).halves(seed=0)
    a, b = set(first.labels.tolist()), set(second.labels.tolist())
    assert not a & b
    assert a | b == set(range(n))
    assert len(a) == n // 2
    assert torch.equal(first.images[:, 0, 0, 0].long(), first.labels)
    assert set(numbered(n).halves(seed=1)[0].labels.tolist()) != a


def generator():
    return torch.Generator().manual_seed(0)


def test_without_augmentation_nothing_happens():
    x = torch.randn(3, 2, 8, 8)
    assert distort(x, 8, Augmentation(), generator()) is x


def test_shift_moves_by_whole_pixels_and_fills_with_the_mean():  # ledger A23
    x = torch.randn(64, 1, 8, 8)
    y = distort(x, 8, Augmentation(shift=0.25), generator())
    moves = set()
    for before, after in zip(x, y, strict=True):
        padded = torch.nn.functional.pad(before, (2, 2, 2, 2))
        found = [
            (i, j)
            for i in range(5)
            for j in range(5)
            if torch.allclose(padded[:, i : i + 8, j : j + 8], after, atol=1e-5)
        ]
        assert len(found) == 1
        moves.update(found)
    assert len(moves) > 15


def test_flip_mirrors_about_half():
    x = torch.randn(200, 1, 4, 4)
    y = distort(x, 4, Augmentation(flip=True), generator())
    same, mirrored = (torch.isclose(z, y, atol=1e-5).flatten(1).all(1) for z in (x, x.flip(-1)))
    assert (same ^ mirrored).all()
    assert 70 < int(mirrored.sum()) < 130


@pytest.mark.parametrize("size", [5, 8, 16])
def test_crops_stay_inside_and_are_resized(size):
    y = distort(torch.ones(50, 1, 8, 8), size, Augmentation(min_crop=0.3), generator())
    torch.testing.assert_close(y, torch.ones(50, 1, size, size))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 24), (30, 16)])
def test_a_crop_reads_the_pixels_of_its_rectangle(height, width):
    """Held against a resampling of PIL, which takes rectangles of fractions of pixels."""
    x, settings = torch.rand(20, 1, height, width), Augmentation(flip=True, shift=0.25, min_crop=0.4)
    for size in (7, 16, 40, (20, 30)):
        y = distort(x, size, settings, generator())
        wanted = pair(size)[::-1]
        drawn = boxes(20, (width, height), settings)
        for image, seen, (move, (left, upper, wide, high), mirrored) in zip(x, y, drawn, strict=True):
            shifted = torch.zeros(height + 8, width + 8)
            shifted[4 : 4 + height, 4 : 4 + width] = image[0]
            shifted = shifted[4 + move[1] : 4 + move[1] + height, 4 + move[0] : 4 + move[0] + width]
            box = (left, upper, left + wide, upper + high)
            expected = Image.fromarray(shifted.numpy()).resize(wanted, Image.Resampling.BILINEAR, box=box)
            expected = torch.from_numpy(np.array(expected))
            torch.testing.assert_close(seen[0], expected.flip(-1) if mirrored else expected, atol=1e-5, rtol=0)


def boxes(n, sides, settings):
    """What a generator's numbers mean: whole pixels to move by, a rectangle in pixels, whether it is mirrored."""
    draw = generator()
    scale = (1 - (1 - settings.min_crop) * torch.rand(n, generator=draw)).sqrt()
    room = torch.rand(n, 2, generator=draw)
    reach = round(settings.shift * min(sides))
    moves = torch.randint(-reach, reach + 1, (n, 2), generator=draw)
    mirrored = torch.randint(2, (n,), generator=draw).bool()
    for s, r, move, mirror in zip(scale.tolist(), room.tolist(), moves.tolist(), mirrored.tolist(), strict=True):
        yield (
            move,
            [*(side * (1 - s) * share for side, share in zip(sides, r, strict=True)), *(side * s for side in sides)],
            mirror,
        )


@pytest.mark.parametrize("size", [7, 20, 32, 45, 224])
@pytest.mark.parametrize("noise", [True, False])
def test_a_training_image_is_resampled_as_a_test_image(size, noise):
    x = torch.randn(16, 1, 32, 32) if noise else torch.full((16, 1, 32, 32), 2.0)
    y = distort(x, size, Augmentation(flip=True), generator())
    straight, mirrored = resize(x, size), resize(x.flip(-1), size)
    same, other = (torch.isclose(y, z, atol=5e-5).flatten(1).all(1) for z in (straight, mirrored))
    assert (same | other).all()
    assert y.std().item() == pytest.approx(straight.std().item(), rel=0.02, abs=1e-6)
    assert not noise or (same.any() and other.any())


def test_nothing_is_dark_but_what_a_shift_uncovers():
    x, settings = torch.ones(64, 1, 8, 8), Augmentation(shift=0.25)
    y = distort(x, 32, settings, generator())
    for seen, (move, *_) in zip(y[:, 0], boxes(64, (8, 8), settings), strict=True):
        content = torch.nn.functional.pad(x[0, 0], (2, 2, 2, 2))[2 + move[1] :, 2 + move[0] :][:8, :8]
        torch.testing.assert_close(seen, resize(content[None, None], 32)[0, 0])


@pytest.mark.parametrize("size", [8, 20])
def test_part_of_a_batch_is_that_part_of_the_whole(size):
    settings = {"image_size": size, "seed": 3, "epoch": 1, "augmentation": Augmentation(True, 0.25, 0.5)}
    pixels = torch.randint(256, (50, 3, 16, 16), dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(50), ("a",), (0.5,) * 3, (1.0,) * 3)
    whole = list(images.batches(12, **settings))
    for of in (2, 3):
        parts = zip(*(images.batches(12, **settings, part=(i, of)) for i in range(of)), strict=True)
        for (x, y), part in zip(whole, parts, strict=True):
            assert torch.equal(torch.cat([x_part for x_part, _ in part]), x)
            assert torch.equal(torch.cat([y_part for _, y_part in part]), y)


@pytest.mark.parametrize(("height", "width"), [(6, 8), (6, 10), (8, 6)])
def test_images_of_another_shape_are_not_distorted_unasked(height, width):
    images = torch.zeros(4, 1, height, width, dtype=torch.uint8)
    held = ImageSet(images, torch.arange(4), tuple("abcd"), (0.5,), (0.5,))
    with pytest.raises(ValueError, match=rf"^images of {height}x{width} pixels have another shape than image_size 8: "):
        next(held.batches(2, image_size=8))
    ((x, _),) = held.batches(4, image_size=(2 * height, 2 * width))
    assert x.shape == (4, 1, 2 * height, 2 * width)


def test_files_of_any_shape_are_cut_or_stretched_as_is_said(tmp_path):  # ledger A32
    image = Image.new("RGB", (40, 10), "black")
    image.paste("white", (10, 0, 30, 10))  # the middle half
    image.save(tmp_path / "a.png")
    cut, stretched = (FileImages([tmp_path / "a.png"], (10, 20), fit)[0] for fit in ("crop", "stretch"))
    assert cut.shape == stretched.shape == (3, 10, 20)
    assert cut.min() == 255
    assert stretched[:, :, 7:13].min() == 255
    assert stretched[:, :, :3].max() == stretched[:, :, -3:].max() == 0


@pytest.mark.parametrize(
    ("asked", "size"), [((5, 10), (5, 10)), ((8, 16), (8, 16)), ((30, 60), (10, 20)), ((60, 30), (16, 8))]
)
def test_a_rectangle_that_no_image_fills_is_as_large_as_the_largest_that_one_does(files, asked, size):
    found, decoded = decode_once(files, asked, limit=10**6)
    assert found == size
    assert torch.equal(decoded, FileImages(files, size).decode_all())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_seen_upright(tmp_path, orientation):
    """A camera held otherwise says so in EXIF; each of its eight ways is undone."""
    turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # how a camera's image comes from what is seen
    upright = Image.effect_noise((24, 16), 90).convert("RGB")
    stored = upright.transpose(Image.Transpose(turned[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    expected = torch.from_numpy(np.array(upright)).permute(2, 0, 1)
    assert torch.equal(FileImages([tmp_path / "a.png"], (16, 24))[0], expected)
    size, decoded = decode_once([tmp_path / "a.png"], (32, 48), limit=10**6)
    assert size == (16, 24)
    assert torch.equal(decoded[0], expected)


def test_colours_are_those_that_a_person_sees(tmp_path):
    grey = Image.new("L", (8, 8), 100)
    grey.putalpha(Image.new("L", (8, 8), 0))  # nothing of it is to be seen
    cases = {
        "alpha.png": (grey, 255),
        "grey.png": (Image.new("L", (8, 8), 100), 100),
        "deep.png": (Image.fromarray(np.full((8, 8), 100 * 256, dtype=np.uint16)), 100),
        "bits.png": (Image.new("1", (8, 8), 1), 255),
        "print.jpg": (Image.new("CMYK", (8, 8), (0, 0, 0, 0)), 255),
    }
    for name, (image, seen) in cases.items():
        image.save(tmp_path / name)
        assert FileImages([tmp_path / name], 8)[0].unique().tolist() == [seen], name
    Image.new("F", (8, 8), 0.5).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match=r"float\.tiff: its numbers are no colours \(mode F\): save it with 8 or 16"):
        FileImages([tmp_path / "float.tiff"], 8)[0]


def test_resize_any_way():
    x = torch.randn(2, 3, 8, 8)
    assert resize(x, 8) is x
    assert resize(x, 20).shape == (2, 3, 20, 20)
    torch.testing.assert_close(resize(torch.ones(1, 1, 8, 8), 3), torch.ones(1, 1, 3, 3))


@pytest.mark.parametrize(
    ("settings", "words"), [({"shift": 1.0}, "shift"), ({"min_crop": 0.0}, "min_crop"), ({"shift": -0.1}, "shift")]
)
def test_augmentation_out_of_range(settings, words):
    with pytest.raises(ValueError, match=words):
        Augmentation(**settings)


@pytest.fixture
def files(tmp_path):
    for i, (width, height) in enumerate([(12, 8), (8, 16), (8, 8), (20, 10)]):
        Image.new("RGB", (width, height), (10 * i, 0, 200)).save(tmp_path / f"{i}.png")
    return sorted(tmp_path.glob("*.png"))


def test_files_are_resized_by_the_short_side_and_cropped(files):
    decoded = FileImages(files, 6).decode_all()
    assert decoded.shape == (4, 3, 6, 6)
    assert decoded[:, 0, 3, 3].tolist() == [0, 10, 20, 30]


@pytest.mark.parametrize(("asked", "size"), [(6, 6), (8, 8), (9, 9), (10, 10), (200, 10)])
def test_every_file_is_opened_once(files, asked, size, monkeypatch):
    """Whether all, some or none are smaller than what is asked for, they come out as if their size had been known."""
    expected, read, look = FileImages(files, size).decode_all(), [], images.opened
    monkeypatch.setattr(images, "opened", lambda file: (read.append(file), look(file))[1])
    found, decoded = decode_once(files, asked, limit=10**6)
    assert found == size
    assert torch.equal(decoded, expected)
    assert sorted(read) == files
    assert torch.equal(decode_once([f.read_bytes() for f in files], asked, limit=10**6)[1], expected)


def test_what_cannot_be_held_is_not_decoded(files):
    assert decode_once(files, 10, limit=4 * 3 * 100)[1] is not None
    assert decode_once(files, 10, limit=4 * 3 * 100 - 1) == (10, None)  # the last one is the largest
    assert decode_once(files[::-1], 200, limit=4 * 3 * 100 - 1) == (10, None)


def test_centre_is_kept(tmp_path):
    image = Image.new("RGB", (30, 10), "black")
    image.paste("white", (10, 0, 20, 10))
    image.save(tmp_path / "a.png")
    assert FileImages([tmp_path / "a.png"], 10)[0].min() == 255


def test_files_decoded_as_needed_equal_files_decoded_at_once(files):
    settings = {"image_size": 6, "seed": 0, "augmentation": Augmentation(flip=True)}
    held = ImageSet(FileImages(files, 6).decode_all(), torch.arange(4), tuple("abcd"), (0.0,) * 3, (1.0,) * 3)
    lazy = ImageSet(FileImages(files, 6), torch.arange(4), tuple("abcd"), (0.0,) * 3, (1.0,) * 3)
    for (x, y), (x_lazy, y_lazy) in zip(held.batches(2, **settings), lazy.batches(2, **settings), strict=True):
        assert torch.equal(x, x_lazy)
        assert torch.equal(y, y_lazy)
    assert numbers(lazy.subset([3, 1]).batches(2, image_size=6)) == numbers(
        held.subset([3, 1]).batches(2, image_size=6)
    )


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tiff", "webp", "ppm"])
@pytest.mark.filterwarnings("ignore")  # PIL warns of some damage that it can do without
def test_a_damaged_file_is_decoded_or_named_in_one_line(tmp_path, suffix):
    path, rng = tmp_path / f"a.{suffix}", random.Random(0)
    Image.effect_noise((16, 12), 90).convert("RGB").save(path)
    whole, refused = path.read_bytes(), []
    for i in range(60):
        content = bytearray(whole)
        at = rng.randrange(len(whole))
        if i % 3:
            content[at : at + i % 3] = rng.randbytes(i % 3)
        else:
            del content[at:]
        path.write_bytes(content)
        try:
            assert FileImages([path], 8)[0].shape == (3, 8, 8)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 10
    assert all(message.startswith(f"cannot read image {path}: ") and "\n" not in message for message in refused)


def test_an_image_that_would_fill_the_memory_is_refused(files, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for read in (lambda path: decode_once([path], 6, 10**6), lambda path: FileImages([path], 6)[0]):
        with pytest.raises(ValueError, match=r"cannot read image .*0\.png: Image size \(96 pixels\) exceeds limit"):
            read(files[0])


def test_decoding_leaves_the_global_generators_alone(files):
    before = torch.get_rng_state()
    list(FileImages(files, 6).decode([torch.tensor([0, 1])]))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_file_that_breaks_in_a_worker_is_named_in_one_line(files):
    files[2].write_bytes(files[2].read_bytes()[:45])
    lazy = ImageSet(FileImages(files, 6), torch.arange(4), tuple("abcd"), (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(ValueError, match=r"cannot read image .*2\.png") as caught:
        list(lazy.batches(2, image_size=6))
    assert "\n" not in str(caught.value)
