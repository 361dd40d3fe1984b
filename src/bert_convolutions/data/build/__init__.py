"""Building a store of sentence pairs from plain text; ``bert_convolutions.data`` reads it."""
