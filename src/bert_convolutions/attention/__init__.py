"""The score equation of composite attention and its parts, in plain PyTorch; imports nothing else of this project."""
