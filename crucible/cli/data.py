"""`crucible data`: prepare, list, show and export datasets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crucible.cli.records import JsonOption, StoreOption, open_store, print_json
from crucible.formatting import print_table

if TYPE_CHECKING:
    from crucible.datasets.finished import DatasetInfo
    from crucible.datasets.progress import ProgressCallback


def register(app: typer.Typer) -> None:
    """Add the `data` commands."""
    group = typer.Typer(help="Datasets: text made into token shards, kept by digest.", no_args_is_help=True)
    group.command()(prepare)
    group.command("ls")(list_)
    group.command()(show)
    group.command("export-nanogpt")(export_nanogpt)
    app.add_typer(group, name="data")


def prepare(
    source: Annotated[
        str, typer.Option(help="python-stdlib, shakespeare, a file or folder, s3://… or https://… (with --sha256).")
    ] = "python-stdlib",
    tokenizer: Annotated[str, typer.Option(help="char, byte, bpe, gpt2 or file.")] = "char",
    tokenizer_file: Annotated[
        str | None, typer.Option(help="Use this tokenizer.json, or the tokenizer of this dataset folder.")
    ] = None,
    vocab_size: Annotated[int | None, typer.Option(help="bpe: tokens; char: most distinct characters.")] = None,
    val_fraction: Annotated[float, typer.Option(help="Share of the text kept for validation.")] = 0.1,
    max_bytes: Annotated[int | None, typer.Option(help="Use at most about this many bytes of the source.")] = None,
    sha256: Annotated[str | None, typer.Option(help="What the source must hash to.")] = None,
    text_field: Annotated[str, typer.Option(help=".jsonl, .parquet: the field that holds the text.")] = "text",
    include: Annotated[list[str] | None, typer.Option(help="Pattern of files to use; may be repeated.")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Name or pattern of files to leave out; may be repeated.")
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Turn text into token shards in the store; text that was prepared before is found, not read again."""
    from crucible.datasets.build import build_dataset
    from crucible.datasets.config import DatasetConfig
    from crucible.store import default_store_uri, store_at

    values: dict[str, Any] = {
        "source": source,
        "tokenizer": "file" if tokenizer_file else tokenizer,
        "tokenizer_file": tokenizer_file,
        "vocab_size": vocab_size,
        "val_fraction": val_fraction,
        "max_bytes": max_bytes,
        "sha256": sha256,
        "text_field": text_field,
    }
    values |= {name: given for name, given in (("include", include), ("exclude", exclude)) if given}
    with _progress_bar() as progress:
        info = build_dataset(DatasetConfig.parse(values), store_at(store or default_store_uri()), progress)
    if as_json:
        print_json({**_summary(info), "cached": info.cached})
    else:
        typer.echo(f"{'cached' if info.cached else 'prepared'} {info.digest}")
        _print_facts(info)


def list_(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List the finished datasets of the store."""
    from crucible.datasets.finished import list_datasets

    infos = list_datasets(open_store(store), lambda problem: typer.echo(f"warning: {problem}", err=True))
    if as_json:
        print_json([_summary(info) for info in infos])
        return
    if not infos:
        typer.echo("no datasets yet; `crucible data prepare` makes one")
        return
    rows = [
        [
            info.digest[:12],
            info.meta.source_name(),
            info.meta.tokenizer.kind,
            f"{info.meta.vocab_size:,}",
            *(f"{info.meta.splits[split].tokens:,}" for split in ("train", "val")),
        ]
        for info in infos
    ]
    headings = ["digest", "source", "tokenizer", "vocabulary", "train tokens", "val tokens"]
    print_table(headings, rows, numbers=(3, 4, 5))


def show(
    digest: Annotated[str, typer.Argument(help="The dataset's digest, or the beginning of it.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one dataset; with --json, its meta.json."""
    from crucible.datasets.finished import resolve_dataset

    info = resolve_dataset(open_store(store), digest)
    if as_json:
        print_json({**info.meta.model_dump(mode="json"), "uri": info.uri})
    else:
        typer.echo(info.digest)
        _print_facts(info)


def export_nanogpt(
    digest: Annotated[str, typer.Argument(help="The dataset's digest, or the beginning of it.")],
    folder: Annotated[Path, typer.Argument(help="Where to write train.bin, val.bin and meta.pkl.")],
    store: StoreOption = None,
) -> None:
    """Write a dataset in the files that nanoGPT's own train.py reads."""
    from crucible.datasets import nanogpt
    from crucible.datasets.fetch import fetch_dataset
    from crucible.datasets.finished import resolve_dataset
    from crucible.home import crucible_home

    opened = open_store(store)
    info = resolve_dataset(opened, digest)
    local = fetch_dataset(opened, info.digest, crucible_home() / "cache" / "datasets")
    for path in nanogpt.export_nanogpt(local, folder):
        typer.echo(str(path))


def _summary(info: DatasetInfo) -> dict[str, Any]:
    meta = info.meta
    return {
        "digest": info.digest,
        "uri": info.uri,
        "source": meta.source,
        "tokenizer": meta.tokenizer.kind,
        "vocab_size": meta.vocab_size,
        "tokens": {name: split.tokens for name, split in meta.splits.items()},
        "bytes": meta.text_bytes,
        "shards": sum(len(split.shards) for split in meta.splits.values()),
    }


def _print_facts(info: DatasetInfo) -> None:
    meta = info.meta
    facts: dict[str, str] = {
        "source": meta.source_name(),
        "tokenizer": f"{meta.tokenizer.kind}, {meta.vocab_size:,} tokens",
        **{
            name: f"{split.tokens:,} tokens from {split.bytes:,} bytes, {len(split.shards)} shard(s)"
            for name, split in meta.splits.items()
        },
        "where": info.uri,
    }
    if meta.tokenizer.replaced_characters:
        facts["replaced"] = f"{meta.tokenizer.replaced_characters:,} rare characters became U+FFFD"
    for name, fact in facts.items():
        typer.echo(f"  {name:<10} {fact}")


@contextmanager
def _progress_bar() -> Iterator[ProgressCallback]:
    """A bar on stderr, one line per stage; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    from crucible.datasets.progress import Progress

    columns = (TextColumn("{task.description:<12}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:
        stages: dict[str, Any] = {}

        def show_progress(state: Progress) -> None:
            if state.stage not in stages:
                stages[state.stage] = bars.add_task(state.stage)
            bars.update(stages[state.stage], completed=state.done, total=state.total or None)

        yield show_progress
