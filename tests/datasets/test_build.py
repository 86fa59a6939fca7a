from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from crucible.datasets import build
from crucible.datasets.build import build_dataset, find_unread
from crucible.datasets.config import SHAKESPEARE_SHA256, DatasetConfig
from crucible.datasets.disk import work_folder
from crucible.datasets.fetch import fetch_dataset
from crucible.datasets.finished import find_dataset, list_datasets, resolve_dataset
from crucible.datasets.meta import load_meta, require_block_size
from crucible.datasets.nanogpt import export_nanogpt
from crucible.datasets.progress import PreprocessingStopped, Progress, Stop, silent
from crucible.datasets.tokenizers import load_tokenizer
from crucible.errors import ConfigError, DataError, StoreError
from crucible.store import Store, store_at
from tests.datasets.texts import make_text


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(make_text(50_000).replace("\r", ""), encoding="utf-8", newline="")
    return path


def decoded(folder: Path, split: str) -> str:
    """The split's text, read back from its shards."""
    meta = load_meta(folder)
    shards = [np.fromfile(folder / shard.file, meta.dtype) for shard in meta.splits[split].shards]  # type: ignore[index]
    return load_tokenizer(folder).decode(np.concatenate(shards))


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
def test_the_text_comes_back_from_the_shards(tokenizer: str, text_file: Path, store: Store, tmp_path: Path) -> None:
    config = DatasetConfig.parse(
        {
            "source": str(text_file),
            "tokenizer": tokenizer,
            "shard_bytes": 5000,
            "vocab_size": 400 if tokenizer == "bpe" else None,
        }
    )
    info = build_dataset(config, store)
    folder = fetch_dataset(store, info.digest, tmp_path / "cache")
    text = text_file.read_bytes().decode()
    cut = int(len(text) * 0.9)
    assert decoded(folder, "train") == text[:cut]
    assert decoded(folder, "val") == text[cut:]
    assert len(info.meta.splits["train"].shards) > 5
    assert info.meta.splits["train"].bytes == len(text[:cut].encode())
    assert info.meta.splits["train"].tokens == sum(shard.tokens for shard in info.meta.splits["train"].shards)


def test_a_second_time_nothing_is_tokenized(text_file: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_dataset(DatasetConfig(source=str(text_file)), store)
    copy = text_file.with_name("elsewhere.md")  # the same text from another place is the same dataset
    copy.write_bytes(text_file.read_bytes())
    monkeypatch.setattr(build, "write_shard", None)
    second = build_dataset(DatasetConfig(source=str(copy)), store)
    assert (second.digest, second.cached, first.cached) == (first.digest, True, False)
    assert second.meta == first.meta


def test_every_option_that_changes_tokens_changes_the_digest(text_file: Path, store: Store) -> None:
    variants = [
        {},
        {"tokenizer": "byte"},
        {"vocab_size": 20},
        {"val_fraction": 0.2},
        {"max_bytes": 10_000},
        {"shard_bytes": 2000},
        {"tokenizer": "bpe", "vocab_size": 300},
        {"tokenizer": "bpe", "vocab_size": 310},
    ]
    digests = {build_dataset(DatasetConfig.parse({"source": str(text_file), **v}), store).digest for v in variants}
    text_file.write_text(text_file.read_text(encoding="utf-8") + "more", encoding="utf-8")
    digests.add(build_dataset(DatasetConfig(source=str(text_file)), store).digest)
    assert len(digests) == len(variants) + 1
    assert {info.digest for info in list_datasets(store)} == digests


def test_documents_of_a_folder_are_shuffled_and_separated(corpus: Path, store: Store, tmp_path: Path) -> None:
    info = build_dataset(DatasetConfig(source=str(corpus)), store)
    folder = fetch_dataset(store, info.digest, tmp_path / "cache")
    names = sorted(
        (f"{'deep/' if n % 2 else ''}doc{n}.txt" for n in range(9)),
        key=lambda n: hashlib.sha256(n.encode()).hexdigest(),
    )
    texts = [(corpus / name).read_bytes().decode() for name in names]
    assert decoded(folder, "train") + decoded(folder, "val") == "\n".join(texts)


def test_documents_without_any_line_end_are_still_separated(tmp_path: Path, store: Store) -> None:
    folder = tmp_path / "lines"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_text(name * 10)
    info = build_dataset(DatasetConfig(source=str(folder)), store)
    local = fetch_dataset(store, info.digest, tmp_path / "cache")
    assert sorted((decoded(local, "train") + decoded(local, "val")).split("\n")) == ["a" * 10, "b" * 10, "c" * 10]


def test_include_and_exclude_choose_documents(corpus: Path, store: Store) -> None:
    def tokens(**patterns: tuple[str, ...]) -> int:
        return build_dataset(DatasetConfig(source=str(corpus), tokenizer="byte", **patterns), store).meta.text_bytes

    every, deep, flat = tokens(), tokens(include=("deep/*",)), tokens(exclude=("deep/*",))
    assert every == deep + flat + 1  # one separator more
    with pytest.raises(DataError, match=r"holds no file to use: .* none left by include = \['\*\.md'\]"):
        tokens(include=("*.md",))


def test_the_default_source_is_there_and_has_few_characters(store: Store) -> None:
    info = build_dataset(DatasetConfig(), store)
    assert info.meta.vocab_size < 100
    assert info.meta.tokenizer.replaced_characters == 0
    assert 3_900_000 < info.meta.text_bytes < 4_100_000
    assert build_dataset(DatasetConfig(), store).cached


def test_a_tokenizer_can_be_reused_for_other_text(corpus: Path, text_file: Path, store: Store, tmp_path: Path) -> None:
    first = build_dataset(DatasetConfig(source=str(text_file), tokenizer="bpe", vocab_size=400), store)
    folder = fetch_dataset(store, first.digest, tmp_path / "cache")
    second = build_dataset(DatasetConfig(source=str(corpus), tokenizer="file", tokenizer_file=str(folder)), store)
    assert second.meta.tokenizer.kind == "bpe"
    assert second.meta.tokenizer.sha256 == first.meta.tokenizer.sha256
    end = decoded(fetch_dataset(store, second.digest, tmp_path / "cache"), "train").count("<|endoftext|>")
    assert end >= 6  # between documents, but not in front of the first


def test_rare_characters_are_counted_in_the_meta(text_file: Path, store: Store) -> None:
    info = build_dataset(DatasetConfig(source=str(text_file), vocab_size=10), store)
    assert info.meta.vocab_size == 10
    assert info.meta.tokenizer.replaced_characters > 1000


def test_two_builds_at_once_are_harmless(text_file: Path, store: Store, tmp_path: Path) -> None:
    config = DatasetConfig(source=str(text_file), shard_bytes=2000)
    with ThreadPoolExecutor(4) as pool:
        infos = [future.result() for future in [pool.submit(build_dataset, config, store) for _ in range(4)]]
    assert len({info.meta.model_dump_json() for info in infos}) == 1
    assert fetch_dataset(store, infos[0].digest, tmp_path / "cache").is_dir()


def test_what_a_killed_build_left_is_not_trusted(text_file: Path, home: Path, store: Store, tmp_path: Path) -> None:
    """SIGKILL between the shards and meta.json; then one of the shards left behind rots."""
    script = textwrap.dedent("""
        import os, signal, sys
        from crucible.datasets import build
        from crucible.datasets.config import DatasetConfig
        from crucible.store import Store, store_at
        build.finish = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
        build.build_dataset(DatasetConfig(source=sys.argv[1], shard_bytes=5000), store_at(sys.argv[2]))
    """)
    killed = subprocess.run([sys.executable, "-c", script, str(text_file), store.uri], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = store.folders("datasets")
    shards = store.list(f"datasets/{left}")
    assert len(shards) > 5
    assert list_datasets(store) == []
    store.write(shards[0].key, b"rotten")

    info = build_dataset(DatasetConfig(source=str(text_file), shard_bytes=5000), store)
    assert (info.digest, info.cached) == (left, False)
    folder = fetch_dataset(store, info.digest, tmp_path / "cache")
    assert decoded(folder, "train") + decoded(folder, "val") == text_file.read_bytes().decode()


def test_a_source_that_changes_meanwhile_is_refused(text_file: Path, store: Store) -> None:
    config = DatasetConfig(source=str(text_file))
    with work_folder() as work:
        planned = build.plan(config, store, work)
        shards = [build.build_shard(planned, item, store) for item in planned.items]
        os.utime(text_file, (1, 1))
        with pytest.raises(DataError, match=r"text\.txt was changed while it was being preprocessed"):
            build.finish(planned, shards, store)
    assert find_dataset(store, planned.digest) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"x", "too few to split with val_fraction = 0.1"),
        (b"plain text, then \xe9 in Latin-1", r"not UTF-8 text: byte 17 is 0xe9 .*; convert it"),
        (None, r"does not exist on this machine; give the path"),
    ],
)
def test_bad_text_is_one_message_and_leaves_nothing(
    content: bytes | None, message: str, tmp_path: Path, home: Path, store: Store
) -> None:
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        build_dataset(DatasetConfig(source=str(path)), store)
    assert store.list() == []
    assert list((home / "work").iterdir()) == []


def test_a_dataset_that_is_there_is_found_without_its_text(text_file: Path, store: Store) -> None:
    """No machine is started for it, and nothing is downloaded."""
    content = hashlib.sha256(text_file.read_bytes()).hexdigest()
    web = DatasetConfig(source="https://text.invalid/a.txt", sha256=content)
    assert find_unread(web, store) is None
    built = build_dataset(DatasetConfig(source=str(text_file)), store)
    found = find_unread(web, store)
    assert found is not None
    assert found.digest == built.digest
    assert find_unread(DatasetConfig(source=str(text_file)), store) is None, "its text would have to be read"


def test_a_wrong_sha256_names_both(text_file: Path, store: Store) -> None:
    real = hashlib.sha256(text_file.read_bytes()).hexdigest()
    with pytest.raises(DataError, match=rf"has sha256 {real}, expected {'0' * 64}"):
        build_dataset(DatasetConfig(source=str(text_file), sha256="0" * 64), store)
    assert store.list() == []
    assert build_dataset(DatasetConfig(source=str(text_file), sha256=real), store).meta.tokens


def test_a_full_disk_is_one_message_and_leaves_nothing(text_file: Path, store: Store, home: Path) -> None:
    """A limit on the size of written files makes real writes fail half-way, as a full disk does."""
    script = textwrap.dedent("""
        import resource, sys
        from crucible.datasets.build import build_dataset
        from crucible.datasets.config import DatasetConfig
        from crucible.errors import DataError
        from crucible.store import Store, store_at
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        try:
            build_dataset(DatasetConfig(source=sys.argv[1]), store_at(sys.argv[2]))
        except DataError as error:
            print(error)
    """)
    done = subprocess.run(
        [sys.executable, "-c", script, str(text_file), store.uri], check=True, capture_output=True, text=True
    )
    assert "cannot write to" in done.stdout
    assert "free space there or set CRUCIBLE_HOME" in done.stdout
    assert list_datasets(store) == []
    assert list((home / "work").iterdir()) == []


def test_a_store_that_refuses_writes_is_one_message(text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file where the store's folder should be")
    refusing = store_at((tmp_path / "blocked" / "store").as_uri())
    with pytest.raises(StoreError, match=r"store file://.*blocked"):
        build_dataset(DatasetConfig(source=str(text_file)), refusing)


def test_block_size_longer_than_a_split_names_both_numbers(text_file: Path, store: Store) -> None:
    meta = build_dataset(DatasetConfig(source=str(text_file), max_bytes=3000), store).meta
    tokens = meta.splits["val"].tokens
    require_block_size(meta, tokens - 1)
    with pytest.raises(ConfigError, match=rf"block_size = {tokens} is longer .*val split has {tokens} tokens"):
        require_block_size(meta, tokens)


def test_progress_ends_at_the_whole_of_each_stage(text_file: Path, store: Store) -> None:
    seen: dict[str, Progress] = {}
    build_dataset(DatasetConfig(source=str(text_file)), store, lambda state: seen.update({state.stage: state}))
    assert list(seen) == ["hash", "read", "tokenize"]
    assert all(state.done == state.total > 0 for state in seen.values())


def test_a_dataset_is_found_by_the_beginning_of_its_digest(text_file: Path, store: Store) -> None:
    digest = build_dataset(DatasetConfig(source=str(text_file)), store).digest
    assert resolve_dataset(store, digest[:6]).digest == digest
    build_dataset(DatasetConfig(source=str(text_file), tokenizer="byte"), store)
    with pytest.raises(DataError, match="could be any of"):
        resolve_dataset(store, "")
    with pytest.raises(DataError, match="is not in file://"):
        resolve_dataset(store, "zzz")


def test_nanogpt_export_is_nanogpts_own(text_file: Path, store: Store, tmp_path: Path) -> None:
    """Against a transcription of data/shakespeare_char/prepare.py."""
    info = build_dataset(DatasetConfig(source=str(text_file), shard_bytes=7000), store)
    out = tmp_path / "nanogpt"
    export_nanogpt(fetch_dataset(store, info.digest, tmp_path / "cache"), out)
    data = text_file.read_bytes().decode()
    characters = sorted(set(data))
    number = {character: i for i, character in enumerate(characters)}
    cut = int(len(data) * 0.9)
    for name, part in (("train", data[:cut]), ("val", data[cut:])):
        expected = np.array([number[character] for character in part], dtype=np.uint16).tobytes()
        assert (out / f"{name}.bin").read_bytes() == expected
    loads = "import pickle, sys, json; print(json.dumps(pickle.load(open(sys.argv[1], 'rb'))))"
    table = json.loads(
        subprocess.run(
            [sys.executable, "-c", loads, str(out / "meta.pkl")], check=True, capture_output=True, text=True
        ).stdout
    )
    assert table["vocab_size"] == len(characters)
    assert table["stoi"] == number


@pytest.fixture
def shakespeare() -> Path:
    path = Path(__file__).parents[3] / "shared" / "data" / "tinyshakespeare.txt"
    if not path.exists():
        pytest.skip("tiny Shakespeare is not at hand")
    return path


def test_tiny_shakespeare_gives_nanogpts_bytes(shakespeare: Path, store: Store, tmp_path: Path) -> None:
    info = build_dataset(DatasetConfig(source=str(shakespeare), sha256=SHAKESPEARE_SHA256), store)
    export_nanogpt(fetch_dataset(store, info.digest, tmp_path / "cache"), tmp_path / "out")
    hashes = [
        hashlib.sha256((tmp_path / "out" / f"{split}.bin").read_bytes()).hexdigest() for split in ("train", "val")
    ]
    assert hashes == [
        "6ec305602a99ac2802745a134e1f5e33e2231b4855525b00b9aebb730ac2626f",
        "d37d30cc0c8327c270d493299c3dca54135f6d5f1c9ef60cda78076e311204b1",
    ]
    # The `shakespeare` source has the same content, so it needs neither network nor time now.
    assert build_dataset(DatasetConfig(source="shakespeare"), store).cached


@pytest.mark.parametrize("stage", ["read", "tokenize"])
def test_a_stop_ends_each_stage_within_a_piece(stage: str, tmp_path: Path, store: Store) -> None:
    """As a cancelled flow run does, whose shards are tokenized in threads that no signal reaches."""
    path = tmp_path / "long.txt"
    path.write_text("a line that is like any other\n" * 400_000)
    stop, seen = Stop(), []

    def report(state: Progress) -> None:
        seen.append(state)
        if state.stage == stage:
            with pytest.raises(KeyboardInterrupt), stop.on_error():
                raise KeyboardInterrupt

    with pytest.raises(PreprocessingStopped, match=rf"\({stage}\)"):
        build_dataset(DatasetConfig.parse({"source": str(path), "tokenizer": "byte"}), store, stop.watched(report))
    assert [state.stage for state in seen].count(stage) == 1
    assert seen[-1].done < seen[-1].total
    assert list_datasets(store) == []


def test_without_a_stop_progress_is_passed_on() -> None:
    stop = Stop()
    with stop.on_error():
        stop.watched(silent)(Progress("read", 1, 2))
