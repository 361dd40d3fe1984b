"""The Hugging Face model around composite attention."""
