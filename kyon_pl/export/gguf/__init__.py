"""ChatGLM2 in GGUF, the file format of llama.cpp: merged models and single adapters."""
