"""Preprocessing: from text, wherever it is, to shards of token ids in the store.

    config.py            which text, and how it becomes token ids
    sources.py           makes the text local: a folder, https (download.py), S3 (s3.py)
    formats.py           makes it plain text: line ends, compression, JSON Lines, Parquet
    text.py              reads it in pieces that do not change the ids
    tokenizers/          turns it into ids; tokenizer_choice.py says which one
    shards.py            writes them
    build.py             all of it, under a content digest
    finished.py          finds the finished ones in a store
    fetch.py             downloads a finished dataset to a machine

Plain Python: no Prefect and no torch.
"""
