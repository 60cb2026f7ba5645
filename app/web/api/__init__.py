"""The HTTP API for other programs: OpenAI's and Ollama's forms over what the playground answers with."""
