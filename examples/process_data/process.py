"""Clean and count a folder of text files with several processes: a stage without a model.

python process.py --input raw --output cleaned --workers 2

Each input file becomes one file of JSON lines, written whole and then renamed into place. What is there already is not
done again, so a restart goes on where it was. Without --input it makes a folder of texts to work on.
"""

import argparse
import collections
import json
import multiprocessing
import random
import re
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--input", type=Path, default=Path("raw"))
parser.add_argument("--output", type=Path, default=Path("cleaned"))
parser.add_argument("--workers", type=int, default=2)
parser.add_argument("--files", type=int, default=40, help="how many to make if there is no input")


def make_input(folder, files):
    draw = random.Random(0)
    words = ["a", "bee", "sees", "the", "sea", "<b>and</b>", "a", "tree"]
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(exist_ok=True)
    for number in range(files):
        lines = [" ".join(draw.choices(words, k=9)) for _ in range(500)]
        (partial / f"{number:04d}.txt").write_text("\n".join(lines))
    partial.rename(folder)


def clean(task):
    """One file: tags and repeated spaces taken out, empty and repeated lines dropped."""
    source, target = task
    seen, counts = set(), collections.Counter()
    partial = target.with_suffix(".partial")
    with partial.open("w") as file:
        for line in source.read_text().splitlines():
            text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", line)).strip()
            if text and text not in seen:
                seen.add(text)
                counts.update(text.split())
                file.write(json.dumps({"text": text, "words": len(text.split())}) + "\n")
    partial.rename(target)
    return target.name, sum(counts.values())


def main():
    args = parser.parse_args()
    if not args.input.exists():
        make_input(args.input, args.files)
    args.output.mkdir(exist_ok=True)
    sources = sorted(args.input.glob("*.txt"))
    tasks = [(source, args.output / f"{source.stem}.jsonl") for source in sources]
    left = [task for task in tasks if not task[1].exists()]
    done = len(tasks) - len(left)
    print(f"{len(left)} of {len(tasks)} files are left", flush=True)
    with multiprocessing.Pool(args.workers) as pool:
        for name, words in pool.imap_unordered(clean, left):
            done += 1
            print(f"file {done} of {len(tasks)}: {name}, {words} words", flush=True)


if __name__ == "__main__":
    main()
