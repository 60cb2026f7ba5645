"""GGUF files: merged models and adapters for llama.cpp and what is built on it."""
