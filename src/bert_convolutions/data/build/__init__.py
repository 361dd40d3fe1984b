"""Making a store of sentence pairs from plain text; reading it is the business of ``bert_convolutions.data``."""
