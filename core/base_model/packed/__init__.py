"""How weights are packed in other people's repositories, one file a format: which tensors of the files make
one of the model, and its numbers.
"""
