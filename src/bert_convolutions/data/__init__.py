"""From plain text to rows of token ids: tokenizer, sentence pairs, order, masking, packing."""
