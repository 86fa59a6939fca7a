"""Preprocessing: from text, wherever it lies, to shards of token ids in the store.

`config` says what is wanted, `sources` makes the text local, `text` cuts it, `tokenizers` turn it into ids, `shards`
writes them, `build` puts it together under a content digest, `fetch` brings a finished dataset to a machine.
Plain Python: nothing here knows Prefect or torch.
"""
