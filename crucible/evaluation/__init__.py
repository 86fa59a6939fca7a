"""Evaluation and export of a trained model, as a process of its own: `python -m crucible.evaluation`.

    evaluate.py      measure, sample, export
    checkpoint.py    load a checkpoint folder as a model
    huggingface.py   export the model for `transformers`, tokenizer.py its tokenizer
    nanogpt.py       export the model for nanoGPT
    card.py          the model card

It uses torch and the trainer's model, but no Prefect, no store and no cloud.
"""
