"""The only package that touches llama_cpp: weights, vocabulary, decoding, sampling, embeddings.

C rules: every pointer has one closing owner; callbacks given to C are kept alive; return codes become exceptions at
once; nothing but the engine thread touches a context.
"""
