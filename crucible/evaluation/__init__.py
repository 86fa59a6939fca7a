"""Evaluation and export of a trained model, as a process of its own: `python -m crucible.evaluation`.

    evaluate.py      what is measured, in which order, and what is written
    checkpoint.py    a checkpoint folder as a model
    huggingface.py   the model as `transformers` reads it, and tokenizer.py its tokenizer
    nanogpt.py       the model as nanoGPT reads it
    card.py          the model card

It knows torch and the trainer's model; it knows no Prefect, no store and no cloud.
"""
