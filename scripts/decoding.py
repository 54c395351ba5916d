"""What a streamed and a prepared picture cost, in time and exactness: python scripts/decoding.py [rounds] [folder]

Pictures of 500 × 375 with the spectrum of photographs (amplitude 1/f), of 110 kB or so at quality 90, as ImageNet's are
on average; or the pictures of ``folder``. All on one thread, everyone in turn in every round, medians of milliseconds:
of processor time but for reading, so that other work on the machine shows less.

    decoding    Pillow, Pillow at half the scale (``draft``, other numbers), torchvision
    the way     from the file's bytes to 224 × 224, augmented: data.decoder=pillow, data.decoder=torchvision
    reading     from a file of its own, and from a pack: what the system has in its memory, and what it has not

and for copies of several sizes and qualities: their bytes, the way from them, and by how much a pixel that the network
sees differs from the original's, in levels of 255: mean over evaluated pictures and over augmented ones.
"""

from __future__ import annotations

import io
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from normbench.data import decode
from normbench.data.cut import Augmented
from normbench.data.packs import Loose, Names, Packed, pack_name
from normbench.data.prepare import copied
from normbench.data.prepared import Recipe
from normbench.data.view import views

COUNT, H, W = 16, 375, 500


def photograph(seed: int) -> Image.Image:
    """Noise whose amplitude falls as 1/f, its colours alike as in photographs."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(H)[:, None], np.fft.rfftfreq(W))
    fall = 1 / np.maximum(frequency, 1 / W)
    layers = [np.fft.irfft2(fall * np.fft.rfft2(generator.standard_normal((H, W))), s=(H, W)) for _ in range(3)]
    grey, red, blue = (layer / layer.std() for layer in layers)
    mixed = np.stack([grey + 0.3 * red, grey, grey + 0.3 * blue], axis=-1)
    return Image.fromarray(np.clip(120 + 50 * mixed, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **{"quality": 90, **options})
    return out.getvalue()


def kinds(folder: str | None) -> dict[str, list[bytes]]:
    """kind of picture → files."""
    if folder:
        files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        return {folder: [path.read_bytes() for path in random.Random(0).sample(files, min(COUNT, len(files)))]}
    images = [photograph(seed) for seed in range(COUNT)]
    return {
        "colour": [jpeg(image) for image in images],
        "progressive": [jpeg(image, progressive=True) for image in images],
        "grey": [jpeg(image.convert("L")) for image in images],
        "CMYK": [jpeg(image.convert("CMYK")) for image in images],
    }


def by_pillow(data: bytes) -> None:
    Image.open(io.BytesIO(data)).convert("RGB")


def by_draft(data: bytes) -> None:
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (image.width // 2, image.height // 2))
    image.convert("RGB")


def the_way(decoder: str) -> Callable[[bytes], object]:
    """From bytes to pixels to train on; a picture's cut is the same in every round."""
    view, _ = views(decoder, 224)

    def go(data: bytes) -> object:
        torch.default_generator.manual_seed(len(data))
        return view(data, "picture")

    return go


def race(calls: dict[str, Callable[[], object]], each: int, rounds: int) -> dict[str, float]:
    """Median milliseconds of processor time of each call over ``each``, everyone in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name in random.sample(list(calls), len(calls)):
            start = time.process_time()
            calls[name]()
            seconds[name].append(time.process_time() - start)
    return {name: 1000 * statistics.median(times) / each for name, times in seconds.items()}


def over(work: Callable[[bytes], object], files: list[bytes]) -> Callable[[], object]:
    return lambda: [work(data) for data in files]


def decoding(found: dict[str, list[bytes]], rounds: int) -> None:
    print("ms a picture     kB   Pillow   draft ½   torchvision   way: pillow   torchvision")
    for kind, files in found.items():
        works = (by_pillow, by_draft, lambda data: decode.rgb(data, ""), the_way("pillow"), the_way("torchvision"))
        times = race({str(i): over(work, files) for i, work in enumerate(works)}, len(files), rounds)
        a, b, c, d, e = times.values()
        size = statistics.mean(map(len, files)) / 1000
        print(f"{kind[-12:]:12} {size:7.0f} {a:8.2f} {b:9.2f} {c:13.2f} {d:13.2f} {e:13.2f}")


def copies(files: list[bytes], rounds: int) -> None:
    made = {"original": files}
    for size in (256, 320):
        for quality in (85, 90, 95):
            recipe = Recipe(size, quality, ("train",))
            made[f"{size} q{quality}"] = [copied(data, "", recipe) or data for data in files]
    way = the_way("torchvision")
    times = race({name: over(way, part) for name, part in made.items()}, len(files), rounds)
    print("\ncopy          kB   way ms   levels evaluated   augmented")
    for name, part in made.items():
        size = statistics.mean(map(len, part)) / 1000
        apart = [statistics.mean(map(differ, files, part)) for differ in (evaluated_apart, augmented_apart)]
        print(f"{name:9} {size:6.0f} {times[name]:8.2f} {apart[0]:18.2f} {apart[1]:11.2f}")


def evaluated_apart(original: bytes, copy: bytes) -> float:
    """Mean over the pixels of a centre crop."""
    _, view = views("torchvision", 224)
    one, other = (view(data, "").float() for data in (original, copy))  # type: ignore[union-attr]
    return float((one - other).abs().mean())


def augmented_apart(original: bytes, copy: bytes) -> float:
    """Mean over the pixels of a random crop: the same place of both, to a fraction of a pixel."""
    torch.manual_seed(len(original))
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in (original, copy)]
    W, H = images[0].size
    top, left, height, width = Augmented(224)(H, W).box
    seen = []
    for image in images:
        x, y = image.width / W, image.height / H
        box = (left * x, top * y, (left + width) * x, (top + height) * y)
        seen.append(np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR, box=box), float))
    return float(np.abs(seen[0] - seen[1]).mean())


def reading(rounds: int, count: int = 4000, size: int = 80_000) -> None:
    with tempfile.TemporaryDirectory() as place:
        root, content = Path(place), os.urandom(size)
        names = [f"train/{i % 100}/{i}.JPEG" for i in range(count)]
        with (root / pack_name(0)).open("wb") as pack:
            for name in names:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(content)
                pack.write(content)
        os.sync()
        rows = np.array([[0, i * size, size, zlib.crc32(content), size] for i in range(count)])
        shelves = {
            "files": Loose(root, Names(names), np.full(count, size)),
            "pack": Packed(root, Names(names), rows),
        }
        print("\nreading, ms a picture of 80 kB     files    pack")
        for state in ("in memory", "not in memory"):
            seconds: dict[str, list[float]] = {name: [] for name in shelves}
            for _ in range(max(3, rounds // 3)):
                if state == "not in memory":
                    forget(root)
                order = random.sample(range(count), count)
                for name in random.sample(list(shelves), 2):
                    start = time.perf_counter()
                    for i in order:
                        shelves[name].read(i)
                    seconds[name].append((time.perf_counter() - start) / count)
            print(f"{state:32}", *(f"{1000 * statistics.median(times):7.3f}" for times in seconds.values()))


def forget(root: Path) -> None:
    """Have the system drop the files' pages from its memory; what it knows of names and places it keeps."""
    for path in root.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    pictures = kinds(sys.argv[2] if len(sys.argv) > 2 else None)
    decoding(pictures, rounds)
    copies(next(iter(pictures.values())), rounds)
    reading(rounds)
