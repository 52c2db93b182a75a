"""ChatGLM2's vocabulary, read with SentencePiece alone: no torch and no transformers."""
