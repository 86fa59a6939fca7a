"""Export a dataset's tokenizer for `transformers`: `AutoTokenizer.from_pretrained(folder)` gives equal ids."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HuggingFaceTokenizer

from crucible.datasets.tokenizers import Tokenizer
from crucible.datasets.tokenizers.bpe import END_OF_TEXT, BpeTokenizer
from crucible.datasets.tokenizers.char import UNKNOWN, CharTokenizer
from crucible.datasets.tokenizers.twin import byte_of_character


def write_tokenizer(tokenizer: Tokenizer, folder: Path, longest: int) -> int | None:
    """Write `tokenizer.json` and `tokenizer_config.json`; returns the id of the end-of-text token, if there is one.

    `longest` is the model's context in tokens.
    """
    ours = _as_huggingface(tokenizer)
    (folder / "tokenizer.json").write_text(ours.to_str(), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest,
        "clean_up_tokenization_spaces": False,  # it would change the text
    }
    end_of_text = ours.token_to_id(END_OF_TEXT) if isinstance(tokenizer, BpeTokenizer) else None
    if end_of_text is not None:
        config |= {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return int(end_of_text) if end_of_text is not None else None


def stand_in(tokenizer: CharTokenizer) -> str:
    """The character that stands for those without a token of their own in the exported tokenizer.

    `transformers` has no way to refuse such a text with a sentence, as ours does: U+FFFD where the vocabulary has it,
    else a space, else its first character.
    """
    return next(
        (character for character in (UNKNOWN, " ") if character in tokenizer.characters), tokenizer.characters[0]
    )


def _as_huggingface(tokenizer: Tokenizer) -> HuggingFaceTokenizer:
    if isinstance(tokenizer, BpeTokenizer):
        content = json.loads(tokenizer.to_json())
        if (content.get("post_processor") or {}).get("type") != "ByteLevel":  # which changes no ids
            content["post_processor"] = None  # it puts tokens around a text that the model was not trained with
        return HuggingFaceTokenizer.from_str(json.dumps(content))
    if isinstance(tokenizer, CharTokenizer):
        vocabulary = {character: number for number, character in enumerate(tokenizer.characters)}
        ours = HuggingFaceTokenizer(models.WordLevel(vocabulary, unk_token=stand_in(tokenizer)))
        ours.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
        ours.decoder = decoders.Fuse()
        return ours
    ours = HuggingFaceTokenizer(models.BPE(vocab=byte_of_character(), merges=[]))
    ours.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ours.decoder = decoders.ByteLevel()
    return ours
